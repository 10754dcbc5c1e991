"""The points of a search stage as a curve and a table, in HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlmrun import jsonl
from vlmrun.names import POINTS
from vlmrun.report import html as page
from vlmrun.report import svg
from vlmrun.report.run_table import number, share_text
from vlmrun.report.svg import Bar


def show(folder: Path) -> Markup:
    """A curve where the points lie on a line, bars otherwise, and all of them in a table; empty without points."""
    points = [row for row in jsonl.rows(folder / POINTS) if _is_point(row)]
    if not points:
        return Markup()
    points.sort(key=lambda row: row["point"])
    best = max(points, key=lambda row: row["score"])
    line = _line(points)
    if line is None:
        chart = svg.bars([(_weights(row), [Bar(_numbers(row), row["score"], "accuracy")]) for row in points])
    else:
        across, places = line
        chart = svg.trend(
            [(place, row["score"]) for place, row in zip(places, points, strict=True)],
            across,
            places[points.index(best)],
        )
    return chart + _table(points, best)


def _is_point(row: dict[str, Any]) -> bool:
    kinds = {"point": int, "weights": list, "parameters": dict, "score": float}
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def _line(points: list[dict[str, Any]]) -> tuple[str, list[float]] | None:
    """What varies and its values, when one number tells all points apart."""
    varied = {name: [float(row["parameters"][name]) for row in points] for name in points[0]["parameters"]}
    varied = {name: values for name, values in varied.items() if len(set(values)) > 1}
    if len({tuple(row["weights"]) for row in points}) > 1:
        if any(len(row["weights"]) != 2 for row in points):
            return None
        varied["weight of the second model"] = [float(row["weights"][1]) for row in points]
    if len(varied) != 1:
        return None
    ((name, values),) = varied.items()
    return (name, values) if len(set(values)) == len(values) else None


def _weights(row: dict[str, Any]) -> str:
    return " / ".join(f"{weight:g}" for weight in row["weights"])


def _numbers(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in row["parameters"].items())


def _table(points: list[dict[str, Any]], best: dict[str, Any]) -> Markup:
    titles = ["weights", *points[0]["parameters"], "accuracy", "unseen", ""]
    lines = [
        [
            _weights(row),
            *(f"{value:g}" for value in row["parameters"].values()),
            share_text(number(row, "accuracy")),
            share_text(number(row, "accuracy_unseen")),
            "best" if row is best else "",
        ]
        for row in points
    ]
    styles = ["", *["right"] * len(points[0]["parameters"]), "right heat", "right heat", ""]
    return page.table(titles, lines, styles)
