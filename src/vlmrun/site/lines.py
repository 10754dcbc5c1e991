"""JSONL files of runs that may be damaged or still growing, and numbers that JavaScript can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Objects of a JSONL file, and how many lines are none; a missing or unreadable file has neither.

    A last line without its end is being written: it is neither an object nor damaged.
    """
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return [], 0
    found: list[dict[str, Any]] = []
    n_damaged = 0
    for line in text.split("\n")[:-1]:
        row = _object(line)
        if row is not None:
            found.append(row)
        elif line.strip():
            n_damaged += 1
    return found, n_damaged


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def finite(value: Any) -> float | None:
    """A number that can be drawn; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def safe(value: Any) -> Any:
    """The value with numbers that JSON does not have (nan, inf) as text."""
    if isinstance(value, dict):
        return {str(name): safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
