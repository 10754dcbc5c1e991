"""The scores of evaluate stages: value, interval and protocol, of benchmarks beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from vlmrun.names import SCORES
from vlmrun.report import html as page
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_TITLES = ("benchmark", "score", "95 % interval", "upstream's reading", "shuffled", "blind", "answered", "doubtful",
           "protocol", "published")  # fmt: skip
_STYLES = ("", "right", "", "right", "right", "right", "right", "right", "", "")
_MOST_LABELS = 12
_MOST_RECIPES = 3


def cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The scorecards of an evaluate stage by benchmark; none where it has none."""
    found = _scores(folder).get("benchmarks") or {}
    if not isinstance(found, dict):
        return {}
    return {name: card for name, card in found.items() if isinstance(card, dict) and "value" in card}


def elsewhere(folder: Path) -> dict[str, dict[str, Any]]:
    """The sets of an evaluate stage that a server or a judge scores, as scorecards without a score."""
    found = _scores(folder).get("unscored") or {}
    return {name: {"value": None, **card} for name, card in found.items()} if isinstance(found, dict) else {}


def write(stages: Mapping[str, Path], stream: IO[str]) -> None:
    """One table of all scores of a run's evaluate stages."""
    found = {stage: {**_exact_match(folder), **cards(folder), **elsewhere(folder)} for stage, folder in stages.items()}
    lines = [[stage, *_line(name, card)] for stage, each in found.items() for name, card in each.items()]
    if lines:
        tables.write(Grid("scores", [Column("stage"), *_columns()], lines), stream)


def grid(title: str, found: Mapping[str, dict[str, Any]]) -> Grid:
    """Scorecards as a table of text."""
    return Grid(title, _columns(), [_line(name, card) for name, card in found.items()])


def _columns() -> list[Column]:
    return [Column(title, right=style == "right") for title, style in zip(_TITLES, _STYLES, strict=True)]


def _exact_match(folder: Path) -> dict[str, dict[str, Any]]:
    """Plain questions as scorecards, one for each split: `exact match`, `exact match, unseen`."""
    held = _scores(folder)
    groups = {"exact match": held.get("seen"), "exact match, unseen": held.get("unseen")}
    return {
        name: {
            "value": group["accuracy"],
            "interval": group.get("interval"),
            "shuffled": group.get("shuffled"),
            "blind": group.get("blind"),
            "n_questions": group["n_questions"],
            "n_answered": group["n_questions"],
            "protocol": held.get("protocol"),
        }
        for name, group in groups.items()
        if isinstance(group, dict)
    }


def _scores(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / SCORES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def show(name: str, folder: Path) -> Markup:
    """Tables of one evaluate stage; empty without benchmarks."""
    found = cards(folder)
    shown = {**found, **elsewhere(folder)}
    if not shown:
        return Markup()
    body = page.table(list(_TITLES), [_line(each, card) for each, card in shown.items()], list(_STYLES))
    notes = "; ".join(f"{each}: {card['note']}" for each, card in shown.items() if card.get("note"))
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
        f"by its {card['by']}" if card.get("by") else text(card["value"], scale) or "not defined",
        " .. ".join(text(bound, scale) for bound in bounds),
        text(upstream.get("value"), scale) or ("ends without a score" if upstream.get("stops") else ""),
        text(card.get("shuffled"), scale),
        text(card.get("blind"), scale),
        f"{card.get('n_answered')}/{card.get('n_questions')}",
        str(card.get("n_doubtful", "")),
        str((card.get("protocol") or {}).get("id", "")),
        _published(card, scale),
    ]


def _published(card: Mapping[str, Any], scale: float) -> str:
    """What is published; behind the number of ours that it compares with, where that is not the score."""
    numbers = [f"{recipe} {number:g}" for recipe, number in (card.get("published") or {}).items()]
    if len(numbers) > _MOST_RECIPES:
        numbers = [*numbers[: _MOST_RECIPES - 1], f"{len(numbers) - _MOST_RECIPES + 1} more in {SCORES}"]
    name = card.get("published_of")
    ours = text((card.get("strict") or {}).get(name), scale) if name else ""
    return "; ".join([*([f"{name} {ours}"] if ours and numbers else []), *numbers])


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
