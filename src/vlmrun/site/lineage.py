"""Stages and their parents as a drawing whose boxes are links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vlmrun.report import html
from vlmrun.report.svg import shortened

_WIDE, _HIGH, _ACROSS, _DOWN = 150, 40, 46, 14


@dataclass(frozen=True)
class Stage:
    """A box: what it is called, its kind, where it leads, and the folder names of its parents."""

    name: str
    kind: str
    href: str
    parents: Sequence[str]


def draw(stages: Mapping[str, Stage]) -> Markup:
    """Parents to the left of what was made from them; a parent that is not given is left out."""
    columns: dict[int, list[str]] = {}
    depths: dict[str, int] = {}
    for key in stages:
        columns.setdefault(_depth(key, stages, depths), []).append(key)
    places = {
        key: (4 + column * (_WIDE + _ACROSS), 4 + row * (_HIGH + _DOWN))
        for column, keys in sorted(columns.items())
        for row, key in enumerate(keys)
    }
    if not places:
        return Markup()
    edges = [
        _edge(places[parent], places[key]) for key, one in stages.items() for parent in one.parents if parent in places
    ]
    boxes = [
        {"x": x, "y": y, "name": shortened(stages[key].name, 19), "full": key, "of": stages[key]}
        for key, (x, y) in places.items()
    ]
    width = max(x for x, _ in places.values()) + _WIDE + 4
    height = max(y for _, y in places.values()) + _HIGH + 4
    size = {"wide": _WIDE, "high": _HIGH, "width": width, "height": height}
    return html.render("lineage", boxes=boxes, edges=edges, **size)


def _depth(key: str, stages: Mapping[str, Stage], depths: dict[str, int]) -> int:
    """The longest way from a stage without parents. A loop, which only a forged artifact has, is cut."""
    if key not in depths:
        depths[key] = 0
        parents = [parent for parent in stages[key].parents if parent in stages]
        depths[key] = max((_depth(parent, stages, depths) + 1 for parent in parents), default=0)
    return depths[key]


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDE, start[1] + _HIGH // 2, end[0], end[1] + _HIGH // 2
    bend = max(20, (x2 - x1) // 2)
    return f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"
