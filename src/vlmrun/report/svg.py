"""Charts as SVG text. Colors and type come from the page's style sheet, so they follow its light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 58, 26, 40
_MOST_POINTS = 500
_SMOOTH_SHARE = 0.025  # of the points: how far the smooth line looks to each side
_BARS_WIDTH, _BAR, _BETWEEN = 1000, 15, 16


@dataclass(frozen=True)
class Bar:
    """A bar: its share of 1 (None: was not measured), and the style class that colors it."""

    label: str
    share: float | None
    style: str


@dataclass(frozen=True)
class _Frame:
    """From data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        return _LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)


def curve(
    points: Sequence[tuple[float, float | None]], label: str, held_out: Sequence[tuple[float, float | None]] = ()
) -> str:
    """A loss curve: raw values faintly, a smoothed line over them, the last smoothed value in words.

    Args:
        points: (step, loss); a loss that is None or not finite leaves a gap.
        held_out: the same of evaluations on the way: dots, joined by a line.
    """
    lines = [_thinned(line) for line in _unbroken(points)]
    known = [point for line in lines for point in line]
    if not known:
        return '<p class="quiet">no loss was recorded</p>'
    tried = [point for line in _unbroken(held_out) for point in line]
    frame = _frame([*known, *tried])
    parts = [*_axes(frame), *(_line(line, frame, "raw") for line in lines)]
    smooth = _smoothed(known)
    if len(known) > 1:
        parts.append(_line(smooth, frame, "smooth"))
    if len(tried) > 1:
        parts.append(_line(tried, frame, "tried"))
    parts += [
        f'<circle class="tried-dot" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3">'
        f"<title>held-out loss {y:#.3g} at step {x:g}</title></circle>"
        for x, y in tried
    ]
    x, y = smooth[-1]
    parts.append(f'<circle class="dot" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3.5"/>')
    parts.append(f'<text class="value" x="{frame.across(x) + 8:.1f}" y="{frame.up(y) + 4:.1f}">{y:#.3g}</text>')
    return _svg(_WIDTH, _HEIGHT, f"loss of {label} by step, last {y:#.3g}", parts)


def trend(points: Sequence[Point], across: str, best: float) -> str:
    """Scores (shares of 1) along one number, with the best one marked.

    Args:
        across: what the number is.
        best: its value at the point that was chosen.
    """
    shares = sorted((x, 100 * y) for x, y in points)
    frame = _frame(shares)
    parts = [*_axes(frame, across, "%", whole=False), _line(shares, frame, "smooth")]
    for x, y in shares:
        parts.append(f'<circle class="dot" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3"/>')
    x, y = next(point for point in shares if point[0] == best)
    place = f'x="{frame.across(x):.1f}" y="{frame.up(y) - 8:.1f}"'
    parts.append(f'<circle class="smooth" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="6"/>')
    parts.append(f'<text class="value" text-anchor="middle" {place}>{y:.1f}%</text>')
    return _svg(_WIDTH, _HEIGHT, f"score by {across}, best {y:.1f}% at {x:g}", parts)


def bars(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars from 0 to 100 %, a group for each name."""
    name_width = min(200, 20 + 8 * max((len(name) for name, _ in groups), default=0))
    full = _BARS_WIDTH - name_width - 70
    y, parts = 24.0, []
    height = 24.0 + sum(_BAR * len(items) + _BETWEEN for _, items in groups)
    for percent in range(0, 101, 25):
        x = name_width + full * percent / 100
        style = "axis" if percent == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{height - 6:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="11">{percent}%</text>')
    for name, items in groups:
        middle = y + _BAR * len(items) / 2
        anchor = f'text-anchor="end" x="{name_width - 12}" y="{middle + 4:.1f}"'
        parts.append(f'<text class="label" {anchor}>{escape(shortened(name, 22))}</text>')
        for item in items:
            parts.append(_bar(item, (name_width, y), full))
            y += _BAR
        y += _BETWEEN
    return _svg(_BARS_WIDTH, height, "accuracy of every evaluated model, beside chance and shuffled images", parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= span / count * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def shortened(text: str, longest: int) -> str:
    """A text that fits."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _bar(item: Bar, place: tuple[float, float], full: float) -> str:
    x, y = place
    if item.share is None:
        return f'<text class="tick" x="{x + 6:.1f}" y="{y + 10:.1f}">{escape(item.label)}: not measured</text>'
    share = min(max(item.share, 0.0), 1.0)
    text = f"{item.share:.1%}"
    return (
        f'<rect class="{item.style}" x="{x:.1f}" y="{y:.1f}" width="{max(full * share, 1):.1f}" height="12" rx="2">'
        f"<title>{escape(item.label)} {text}</title></rect>"
        f'<text class="value" x="{x + full * share + 6:.1f}" y="{y + 10:.1f}">{text}</text>'
    )


def _unbroken(points: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    lines: list[list[Point]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y) and math.isfinite(x):
            lines[-1].append((x, y))
        elif lines[-1]:
            lines.append([])
    return [line for line in lines if line]


def _thinned(line: list[Point]) -> list[Point]:
    """At most `_MOST_POINTS`, each the mean of its neighbors."""
    width = math.ceil(len(line) / _MOST_POINTS)
    if width == 1:
        return line
    groups = [line[start : start + width] for start in range(0, len(line), width)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(line: Sequence[Point]) -> list[Point]:
    """Mean of a window around each point: unlike an exponential mean it does not lag behind a steep fall."""
    reach = math.ceil(len(line) * _SMOOTH_SHARE)
    windows = ((x, line[max(0, place - reach) : place + reach + 1]) for place, (x, _) in enumerate(line))
    return [(x, sum(y for _, y in window) / len(window)) for x, window in windows]


def _frame(points: Sequence[Point]) -> _Frame:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    # From zero when the curve falls far, so that its height means something; else zoomed in.
    bottom = 0.0 if 0 <= low < 0.5 * high else low - 0.1 * (high - low)
    top = high + 0.04 * (high - bottom)
    if top - bottom <= 1e-9 * max(abs(top), 1.0):
        bottom, top = bottom - 0.5, top + 0.5
    left = 0.0 if 0 <= min(xs) <= max(1, 0.05 * max(xs)) else min(xs)
    return _Frame((left, max(xs) if max(xs) > left else left + 1), (bottom, top))


def _axes(frame: _Frame, across: str = "step", up: str = "loss", *, whole: bool = True) -> list[str]:
    parts = []
    heights = ticks(*frame.y)
    step = min((b - a for a, b in pairwise(heights)), default=1.0)
    digits = min(max(0, -math.floor(math.log10(step) + 1e-9)), 6)
    for value in heights:
        y = frame.up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{value:.{digits}f}</text>')
    floor = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - _RIGHT}" y2="{floor}"/>')
    for value in ticks(*frame.x):
        if whole and value != int(value):
            continue  # there is no half step
        x = frame.across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{floor}" x2="{x:.1f}" y2="{floor + 4}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{floor + 17}">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" text-anchor="middle" x="{middle:.0f}" y="{_HEIGHT - 6}">{escape(across)}</text>')
    parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="12">{up}</text>')
    return parts


def _line(line: Sequence[Point], frame: _Frame, style: str) -> str:
    if len(line) == 1:
        x, y = line[0]
        return f'<circle class="{style}-dot" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="2"/>'
    points = " ".join(f"{frame.across(x):.1f},{frame.up(y):.1f}" for x, y in line)
    return f'<polyline class="{style}" points="{points}"/>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
