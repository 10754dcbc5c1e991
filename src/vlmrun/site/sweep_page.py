"""The page of a sweep: its points as a table, as parallel coordinates, and each value against the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from vlmrun.report import html
from vlmrun.report.run_table import loss_text, share_text
from vlmrun.report.svg import shortened
from vlmrun.site import lines, links
from vlmrun.site.found import Row

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 900, 320, 40, 30, 90
_SMALL, _LOW = 360, 240


def sections(rows: Sequence[Row], page: str) -> list[Markup]:
    """What a sweep's page shows of its points."""
    varied = _varied(rows)
    results = _results(rows)
    chosen = next(iter(results), None)
    table = [_line(row, varied, results, page) for row in rows]
    titles = ["point", "state", *varied, *results]
    parts = [html.render("points", titles=titles, lines=table)]
    if chosen is None:
        return [html.section("Points", "", *parts), html.note("no point has a result yet")]
    axes = [_axis(key, [values.get(key) for values in map(_values, rows)]) for key in varied]
    axes += [_axis(key, list(column)) for key, column in results.items()]
    pictures = [html.section("Parallel coordinates", "A line is a point of the sweep.", _parallel(rows, axes, page))]
    scatters = [_scatter(rows, axis, axes[len(varied)], page) for axis in axes[: len(varied)]]
    note = f"Each swept value against {chosen}."
    return [html.section("Points", "", *parts), *pictures, html.section("Scatter", note, html.charts(scatters))]


def _values(row: Row) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in row.overrides)}


def _varied(rows: Sequence[Row]) -> list[str]:
    """Keys whose values differ between points."""
    keys = dict.fromkeys(key for row in rows for key in _values(row))
    return [key for key in keys if len({_values(row).get(key) for row in rows}) > 1]


def _results(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Accuracies and losses that tell points apart, the last evaluation's first."""
    found: dict[str, list[float | None]] = {}
    for number in ("accuracy", "accuracy_unseen", "eval_loss", "loss"):
        for stage in reversed(list(dict.fromkeys(name for row in rows for name in row.stages))):
            values = [lines.finite(row.stages.get(stage, {}).get("numbers", {}).get(number)) for row in rows]
            if len({value for value in values if value is not None}) > 1:
                found[f"{stage}.{number}"] = values
    return found


def _text(key: str, value: float | None) -> str:
    return loss_text(value) if key.rpartition(".")[2] in ("loss", "eval_loss") else share_text(value)


def _line(row: Row, varied: Sequence[str], results: dict[str, Any], page: str) -> dict[str, Any]:
    values = _values(row)
    shown = [_text(key, _number(row, key)) for key in results]
    cells = [row.state, *(values.get(key, "") for key in varied), *shown]
    return {"name": row.folder.rpartition("/")[2], "href": links.href(page, links.run(row.folder)), "cells": cells}


def _number(row: Row, key: str) -> float | None:
    stage, _, number = key.rpartition(".")
    return lines.finite(row.stages.get(stage, {}).get("numbers", {}).get(number))


def _axis(key: str, values: Sequence[Any]) -> dict[str, Any]:
    """Where each value is from 0 to 1: numbers by size (by magnitude where they span more than 20), others by order."""
    numbers = [value if isinstance(value, float) else _as_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    if known and all((number is None) == (value is None) for number, value in zip(numbers, values, strict=True)):
        low, high = min(known), max(known)
        by_magnitude = low > 0 and high / low > 20
        places = [None if number is None else _share(number, low, high, by_magnitude) for number in numbers]
        result = isinstance(next(value for value in values if value is not None), float)
        ends = (_text(key, low), _text(key, high)) if result else (f"{low:g}", f"{high:g}")
    else:
        order = sorted({str(value) for value in values if value is not None})
        places = [None if v is None else order.index(str(v)) / max(1, len(order) - 1) for v in values]
        ends = (order[0], order[-1]) if order else ("", "")
    return {"key": key, "places": places, "ends": [shortened(end, 16) for end in ends], "values": values}


def _as_number(value: Any) -> float | None:
    try:
        return lines.finite(float(value))
    except (TypeError, ValueError):
        return None


def _share(number: float, low: float, high: float, by_magnitude: bool) -> float:
    if low == high:
        return 0.5
    if by_magnitude:
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def _parallel(rows: Sequence[Row], axes: Sequence[dict[str, Any]], page: str) -> Markup:
    gap = (_WIDTH - 2 * _SIDE) / max(1, len(axes) - 1)
    drawn = []
    for place, row in enumerate(rows):
        points = [
            f"{_SIDE + gap * column:.1f},{_HEIGHT - _BOTTOM - axis['places'][place] * (_HEIGHT - _TOP - _BOTTOM):.1f}"
            for column, axis in enumerate(axes)
            if axis["places"][place] is not None
        ]
        drawn.append({"points": " ".join(points), **_link(row, page), "tint": axes[-1]["places"][place]})
    marked = [{"x": f"{_SIDE + gap * column:.1f}", **axis} for column, axis in enumerate(axes)]
    for axis in marked:
        axis["title"] = shortened(axis["key"], max(10, int(gap / 7)))
    return html.card("", html.render("parallel", width=_WIDTH, height=_HEIGHT, axes=marked, rows=drawn))


def _scatter(rows: Sequence[Row], across: dict[str, Any], up: dict[str, Any], page: str) -> Markup:
    dots = [
        {"x": f"{60 + x * (_SMALL - 90):.1f}", "y": f"{_LOW - 40 - y * (_LOW - 70):.1f}", **_link(row, page)}
        for row, x, y in zip(rows, across["places"], up["places"], strict=True)
        if x is not None and y is not None
    ]
    drawing = html.render("scatter", width=_SMALL, height=_LOW, across=across, up=up, dots=dots)
    return html.card(across["key"], drawing)


def _link(row: Row, page: str) -> dict[str, str]:
    title = f"{row.label}: {' '.join(row.overrides)} ({row.state})"
    return {"href": links.href(page, links.run(row.folder)), "title": title}
