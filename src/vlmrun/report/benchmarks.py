"""The benchmarks of evaluate stages in the report: accuracy, interval and protocol beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from vlmrun.report import html as page
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_SCORES = "scores.json"
_TITLES = ("benchmark", "score", "95 % interval", "upstream's reading", "shuffled", "answered", "doubtful", "protocol",
           "published")  # fmt: skip
_STYLES = ("", "right", "", "right", "right", "right", "right", "", "")
_MOST_LABELS = 12


def cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The scorecards of an evaluate stage by benchmark; none where it has none."""
    try:
        found = json.loads((folder / _SCORES).read_text("utf-8")).get("benchmarks") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: card for name, card in found.items() if isinstance(card, dict) and "value" in card}


def grid(title: str, found: Mapping[str, dict[str, Any]]) -> Grid:
    """Scorecards as a table of text."""
    columns = [Column(each, right=style == "right") for each, style in zip(_TITLES, _STYLES, strict=True)]
    return Grid(title, columns, [_line(name, card) for name, card in found.items()])


def write(stages: Mapping[str, Path], stream: IO[str]) -> None:
    """The tables of all evaluate stages that have benchmarks."""
    for name, folder in stages.items():
        if found := cards(folder):
            tables.write(grid(name, found), stream)


def show(name: str, folder: Path) -> Markup:
    """Tables of one evaluate stage; empty without benchmarks."""
    found = cards(folder)
    if not found:
        return Markup()
    body = page.table(list(_TITLES), [_line(each, card) for each, card in found.items()], list(_STYLES))
    notes = "; ".join(f"{each}: {card['note']}" for each, card in found.items() if card.get("note"))
    more = [_categories(each, card) + _confusion(each, card) for each, card in found.items()]
    return page.card(name, body, notes) + Markup().join(more)


def text(value: Any, scale: float = 1.0) -> str:
    """A score in per cent, or in its own points."""
    if not isinstance(value, int | float):
        return ""
    return f"{100 * value:.1f}" if scale == 1.0 else f"{value:.1f}"


def _line(name: str, card: dict[str, Any]) -> list[str]:
    scale = card.get("scale", 1.0)
    bounds = card.get("interval") or ()
    upstream = card.get("upstream") or {}
    return [
        name,
        text(card["value"], scale),
        " .. ".join(text(bound, scale) for bound in bounds),
        text(upstream.get("value"), scale) or ("ends without a score" if upstream.get("stops") else ""),
        text(card.get("shuffled"), scale),
        f"{card.get('n_answered')}/{card.get('n_questions')}",
        str(card.get("n_doubtful", "")),
        str((card.get("protocol") or {}).get("id", "")),
        "; ".join(f"{model} {number:g}" for model, number in (card.get("published") or {}).items()),
    ]


def _categories(name: str, card: dict[str, Any]) -> Markup:
    parts = card.get("categories") or {}
    if len(parts) < 2:
        return Markup()
    lines = [
        [each, str(part.get("n_questions", "")), text(part.get("chance")), f"{text(part.get('accuracy'))}%"]
        for each, part in parts.items()
    ]
    body = page.table(["category", "questions", "chance", "accuracy"], lines, ["", "right", "right", "right heat"])
    return page.card(f"{name} by category", body)


def _confusion(name: str, card: dict[str, Any]) -> Markup:
    """Expected down, read across, of sets with a handful of answers."""
    table = card.get("confusion") or {}
    labels = list(dict.fromkeys(label for counts in table.values() for label in counts))
    if not 2 <= len(table) <= _MOST_LABELS or len(labels) > _MOST_LABELS:
        return Markup()
    lines = [[gold, *(str(counts.get(label, 0)) for label in labels)] for gold, counts in table.items()]
    body = page.table(["expected", *labels], lines, ["", *["right"] * len(labels)])
    return page.card(f"{name}: expected and read", body)
