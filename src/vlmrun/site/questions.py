"""Answers of an evaluate stage for a page: with what was expected, what the shuffled control said, and the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmrun.eval.vqa import UNSEEN, is_match
from vlmrun.names import ANSWERS, SHUFFLED
from vlmrun.report import answers
from vlmrun.site import lines

_MOST = 4000  # answers on a page
_MOST_CHARACTERS = 6_000_000  # of images in its data
_TEXTS = ("question_id", "text", "answer")


def read(folder: Path) -> dict[str, Any]:
    """Rows and images by name; `n` counts all answers, of which a page holds the first ones."""
    rows, n_damaged = lines.read(folder / ANSWERS)
    usable = [row for row in rows if all(isinstance(row.get(name), str) for name in _TEXTS)]
    shuffled = {_id(row): row for row in lines.read(folder / SHUFFLED)[0]}
    shown = usable[:_MOST]
    return {
        "n": len(usable),
        "n_damaged": n_damaged + len(rows) - len(usable),
        "rows": [_row(row, shuffled.get(_id(row), {})) for row in shown],
        "images": _images(folder, shown),
    }


def right(row: dict[str, Any]) -> bool | None:
    """Whether an answer is right; None where nothing is expected, or what is expected cannot be read."""
    if not isinstance(row.get("expected"), str) and not isinstance(row.get("score"), int | float):
        return None
    try:
        return is_match(row)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _row(row: dict[str, Any], shuffled: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": _id(row),
        "data": _text(row.get("data")),
        "image": _text(row.get("image")),
        "text": row["text"],
        "expected": _text(row.get("expected")),
        "answer": row["answer"],
        "right": right(row),
        "score": lines.finite(row.get("score")),
        "category": _text(row.get("category")),
        "unseen": row.get("split") == UNSEEN,
        "shuffled": _text(shuffled.get("answer")),
        "shuffled_image": _text(shuffled.get("image")),
    }


def _id(row: dict[str, Any]) -> str:
    return f"{row.get('data', '')}/{row.get('question_id', '')}"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _images(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """`data/image` -> data URI, until their room is used up; what is missing has no entry."""
    roots = answers.image_roots(folder)
    found: dict[str, str] = {}
    room = _MOST_CHARACTERS
    for data, name in dict.fromkeys((row.get("data"), row.get("image")) for row in rows):
        if not isinstance(name, str) or not isinstance(data, str):
            continue
        picture = answers.picture(roots.get(data), name)[0]
        if picture is not None and len(picture) <= room:
            found[f"{data}/{name}"] = picture
            room -= len(picture)
    return found
