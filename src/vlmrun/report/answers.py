"""Answers of an evaluation to show beside their images."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import jsonl
from vlmrun.config.job import JOB_FILE
from vlmrun.data.images.finding import ImageFolder, find_image
from vlmrun.errors import DataError
from vlmrun.eval.vqa import UNSEEN, is_match
from vlmrun.names import ANSWERS, SAMPLES

_TRIED = ("data", "question", "expected", "answer")
_MOST_BYTES = 2_000_000  # of an image inside the page
_WRONG_SHARE = 1 / 3
# Known by their first bytes: names mislead, and tables of suffixes differ between machines.
_MIMES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
_TEXTS = ("data", "text", "expected", "answer", "category", "split")


@dataclass(frozen=True)
class Shown:
    """An answer with its image as a data URI, or with what to say in its place."""

    question: str
    expected: str
    answer: str
    category: str
    correct: bool
    unseen: bool
    picture: str | None
    note: str
    small: bool  # drawn from few pixels: to be enlarged without blurring


def show(folder: Path, count: int) -> tuple[list[Shown], int]:
    """Some answers of an evaluate stage, and how many there are in all."""
    answers = [row for row in jsonl.rows(folder / ANSWERS) if all(isinstance(row.get(name), str) for name in _TEXTS)]
    roots = image_roots(folder)
    return [_shown(row, roots) for row in choose(answers, count)], len(answers)


def tried(folder: Path, count: int) -> tuple[list[Shown], int | None]:
    """The first answers of a training's last evaluation, and its step."""
    found = [row for row in jsonl.rows(folder / SAMPLES) if all(isinstance(row.get(name), str) for name in _TRIED)]
    last = max((row["step"] for row in found if isinstance(row.get("step"), int)), default=None)
    roots = image_roots(folder)
    told = [{**row, "text": row["question"], "category": row["data"], "split": ""} for row in found]
    return [_shown(row, roots) for row in told if row.get("step") == last][:count], last


def choose(answers: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """A mixture over categories, in the order of the file: a third wrong if there are enough, the rest right."""
    wrong = [row for row in answers if not is_match(row)]
    right = [row for row in answers if is_match(row)]
    n_wrong = min(len(wrong), max(round(count * _WRONG_SHARE), count - len(right)))
    chosen = _mixed(wrong, n_wrong)
    chosen += _mixed(right, count - n_wrong)
    kept = {id(row) for row in chosen}
    return [row for row in answers if id(row) in kept]


def _mixed(answers: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Takes turns between categories; within one, evenly spread over its rows, and not where the others stand.

    Neighbors in a file often ask about the same image.
    """
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        by_category[row["category"]].append(row)
    groups = list(by_category.values())
    each = next((n for n in range(1, count) if sum(min(n, len(group)) for group in groups) >= count), count)
    turns = []
    for place, group in enumerate(groups):
        wanted = min(each, len(group))
        picks = (int((turn + place / len(groups)) * len(group) / wanted) for turn in range(wanted))
        turns += [(turn, group[pick]) for turn, pick in enumerate(picks)]
    return [row for _, row in sorted(turns, key=lambda pair: pair[0])][:count]


def _shown(row: dict[str, Any], roots: dict[str, ImageFolder]) -> Shown:
    content, note, small = picture(roots.get(row["data"]), row.get("image"))
    return Shown(
        question=row["text"],
        expected=row["expected"],
        answer=row["answer"],
        category=row["category"],
        correct=is_match(row),
        unseen=row["split"] == UNSEEN,
        picture=content,
        note=note,
        small=small,
    )


def picture(root: ImageFolder | None, name: object) -> tuple[str | None, str, bool]:
    """An image as a data URI, or None; what to say in its place; whether it is drawn from few pixels."""
    if not isinstance(name, str):
        return None, "no image", False
    missing = (None, "image not found", False)
    if root is None:
        return missing
    try:
        with find_image(root, name, suggesting=False).opened() as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, DataError):
        return missing
    if len(content) > _MOST_BYTES:
        return None, f"image not shown: more than {_MOST_BYTES / 1e6:g} MB", False
    mime = next((mime for magic, mime in _MIMES.items() if content.startswith(magic)), None)
    if mime is None:
        return None, "not an image", False
    return f"data:{mime};base64,{base64.b64encode(content).decode()}", "", len(content) < 4096


def image_roots(folder: Path) -> dict[str, ImageFolder]:
    """Data name -> images folder, as the stage's job says; read leniently, for a report outlives its schema."""
    try:
        data = json.loads((folder / JOB_FILE).read_text("utf-8"))["data"]
        return {
            name: ImageFolder(Path(entry["images"]), tuple(map(Path, entry.get("image_roots", ()))))
            for name, entry in data.items()
            if entry.get("images")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
