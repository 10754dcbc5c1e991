"""Charts as SVG. Colors and type come from the page's style sheet, so they follow its light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from vlmrun.report import html as page
from vlmrun.report.run_table import loss_text

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
class _Shape:
    """An element of a drawing: its attributes, the text inside, and what is shown when the pointer rests on it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    title: str = ""


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
    points: Sequence[tuple[float, float | None]],
    label: str,
    held_out: Sequence[tuple[float, float | None]] = (),
    last: float | None = None,
) -> Markup:
    """A loss curve: raw values faintly, a smoothed line over them, the loss of the last step in figures.

    Args:
        points: (step, loss); a loss that is None or not finite leaves a gap.
        held_out: the same of evaluations during training: dots, joined by a line.
        last: the loss of the last step, where the points are means of several.
    """
    lines = [_thinned(line) for line in _unbroken(points)]
    known = [point for line in lines for point in line]
    if not known:
        return page.note("no loss was recorded")
    tried = [point for line in _unbroken(held_out) for point in line]
    frame = _frame([*known, *tried])
    parts = [*_axes(frame), *(_line(line, frame, "raw") for line in lines)]
    smooth = _smoothed(known)
    if len(known) > 1:
        parts.append(_line(smooth, frame, "smooth"))
    if len(tried) > 1:
        parts.append(_line(tried, frame, "tried"))
    parts += [
        _circle("tried-dot", frame.across(x), frame.up(y), 3, f"held-out loss {y:#.3g} at step {x:g}") for x, y in tried
    ]
    said = loss_text(_unbroken(points)[-1][-1][1] if last is None else last)  # of one step, as table and log have it
    x, y = smooth[-1]
    parts.append(_circle("dot", frame.across(x), frame.up(y), 3.5))
    parts.append(_text("value", frame.across(x) + 8, frame.up(y) + 4, said))
    return _svg(_WIDTH, _HEIGHT, f"loss of {label} by step, last {said}", parts)


def trend(points: Sequence[Point], across: str, best: float) -> Markup:
    """Scores (shares of 1) along one number, with the best one marked.

    Args:
        across: what the number is.
        best: its value at the point that was chosen.
    """
    shares = sorted((x, 100 * y) for x, y in points)
    frame = _frame(shares)
    parts = [*_axes(frame, across, "%", whole=False), _line(shares, frame, "smooth")]
    parts += [_circle("dot", frame.across(x), frame.up(y), 3) for x, y in shares]
    x, y = next(point for point in shares if point[0] == best)
    parts.append(_circle("smooth", frame.across(x), frame.up(y), 6))
    parts.append(_text("value", frame.across(x), frame.up(y) - 8, f"{y:.1f}%", "middle"))
    return _svg(_WIDTH, _HEIGHT, f"score by {across}, best {y:.1f}% at {x:g}", parts)


def bars(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Markup:
    """Horizontal bars from 0 to 100 %, a group for each name."""
    name_width = min(200, 20 + 8 * max((len(name) for name, _ in groups), default=0))
    full = _BARS_WIDTH - name_width - 70
    y, parts = 24.0, list[_Shape]()
    height = 24.0 + sum(_BAR * len(items) + _BETWEEN for _, items in groups)
    for percent in range(0, 101, 25):
        x = name_width + full * percent / 100
        style = "axis" if percent == 0 else "grid"
        parts.append(_straight(style, (x, 18), (x, height - 6)))
        parts.append(_text("tick", x, 11, f"{percent}%", "middle"))
    for name, items in groups:
        middle = y + _BAR * len(items) / 2
        parts.append(_text("label", name_width - 12, middle + 4, shortened(name, 22), "end"))
        for item in items:
            parts.extend(_bar(item, (name_width, y), full))
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


def _bar(item: Bar, place: Point, full: float) -> list[_Shape]:
    x, y = place
    if item.share is None:
        return [_text("tick", x + 6, y + 10, f"{item.label}: not measured")]
    share = min(max(item.share, 0.0), 1.0)
    text = f"{item.share:.1%}"
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{max(full * share, 1):.1f}", "height": "12", "rx": "2"}
    bar = _Shape("rect", {"class": item.style, **size}, title=f"{item.label} {text}")
    return [bar, _text("value", x + full * share + 6, y + 10, text)]


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


def _axes(frame: _Frame, across: str = "step", up: str = "loss", *, whole: bool = True) -> list[_Shape]:
    parts = []
    heights = ticks(*frame.y)
    step = min((b - a for a, b in pairwise(heights)), default=1.0)
    digits = min(max(0, -math.floor(math.log10(step) + 1e-9)), 6)
    for value in heights:
        y = frame.up(value)
        parts.append(_straight("grid", (_LEFT, y), (_WIDTH - _RIGHT, y)))
        parts.append(_text("tick", _LEFT - 8, y + 4, f"{value:.{digits}f}", "end"))
    floor = _HEIGHT - _BOTTOM
    parts.append(_straight("axis", (_LEFT, floor), (_WIDTH - _RIGHT, floor)))
    for value in ticks(*frame.x):
        if whole and value != int(value):
            continue  # there is no half step
        x = frame.across(value)
        parts.append(_straight("axis", (x, floor), (x, floor + 4)))
        parts.append(_text("tick", x, floor + 17, f"{value:g}", "middle"))
    parts.append(_text("tick", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "middle"))
    parts.append(_text("tick", _LEFT - 8, 12, up, "end"))
    return parts


def _line(line: Sequence[Point], frame: _Frame, style: str) -> _Shape:
    if len(line) == 1:
        x, y = line[0]
        return _circle(f"{style}-dot", frame.across(x), frame.up(y), 2)
    points = " ".join(f"{frame.across(x):.1f},{frame.up(y):.1f}" for x, y in line)
    return _Shape("polyline", {"class": style, "points": points})


def _straight(style: str, start: Point, end: Point) -> _Shape:
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return _Shape("line", {"class": style, **ends})


def _circle(style: str, x: float, y: float, radius: float, title: str = "") -> _Shape:
    return _Shape("circle", {"class": style, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:g}"}, title=title)


def _text(style: str, x: float, y: float, text: str, anchor: str = "start") -> _Shape:
    return _Shape("text", {"class": style, "text-anchor": anchor, "x": f"{x:.1f}", "y": f"{y:.1f}"}, text)


def _svg(width: float, height: float, label: str, shapes: Sequence[_Shape]) -> Markup:
    return page.render("drawing", width=width, height=height, label=label, shapes=shapes)
