"""The curves of a stage: columns of numbers by name, from its `metrics.jsonl` and `eval.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmrun.names import HELD_OUT, METRICS
from vlmrun.site import lines

_MOST_ROWS = 2000  # drawn; of a longer training each is the mean of several
_PLAIN = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "memory_bytes": "memory (bytes)",
    "loss_scale": "loss scale",
}
_PER_SECOND = {"tokens": "tokens/s", "samples": "samples/s"}
_HELD_OUT = {"loss": "held-out loss", "exact_match": "held-out exact match"}


def read(folder: Path) -> dict[str, Any]:
    """`step` and the other columns, `held` with its own, counts of rows, and of lines that cannot be read."""
    rows, n_damaged = lines.read(folder / METRICS)
    held, n_held_damaged = lines.read(folder / HELD_OUT)
    found, held = _with_step(rows), _with_step(held)
    columns = _columns(found)
    steps = [row["step"] for row in found]
    last = next((value for value in reversed(columns.get("loss", ())) if value is not None), None)
    width = max(1, math.ceil(len(steps) / _MOST_ROWS))
    return {
        "step": steps[width - 1 :: width] + (steps[-1:] if len(steps) % width else []),
        "columns": {name: _thinned(values, width) for name, values in columns.items()},
        "held": {"step": [row["step"] for row in held], "columns": _named(held, _HELD_OUT)},
        "last": last,
        "n_rows": len(found),
        "n_damaged": n_damaged + n_held_damaged + len(rows) - len(found),
        "width": width,
    }


def _with_step(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of their steps; of two with one step the later one counts, as after a crash."""
    by_step = {step: row for row in rows if (step := lines.finite(row.get("step"))) is not None}
    return [{**by_step[step], "step": step} for step in sorted(by_step)]


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    found = _named(rows, _PLAIN)
    parts = dict.fromkeys(part for row in rows if isinstance(row.get("lrs"), dict) for part in row["lrs"])
    for part in parts:
        found[f"learning rate: {part}"] = [lines.finite(_part(row, part)) for row in rows]
    if not parts:
        found |= _named(rows, {"lr": "learning rate"})
    for key, title in _PER_SECOND.items():
        found[title] = [_ratio(row.get(key), row.get("seconds")) for row in rows]
    found["data wait (share of the time)"] = [_ratio(row.get("wait_seconds"), row.get("seconds")) for row in rows]
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _named(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> dict[str, list[float | None]]:
    found = {title: [lines.finite(row.get(key)) for row in rows] for key, title in names.items()}
    return {title: values for title, values in found.items() if any(value is not None for value in values)}


def _part(row: dict[str, Any], part: str) -> Any:
    rates = row.get("lrs")
    return rates.get(part) if isinstance(rates, dict) else None


def _ratio(top: Any, bottom: Any) -> float | None:
    above, below = lines.finite(top), lines.finite(bottom)
    return lines.finite(above / below) if above is not None and below else None


def _thinned(values: list[float | None], width: int) -> list[float | None]:
    if width == 1:
        return values
    groups = (values[start : start + width] for start in range(0, len(values), width))
    known = ([value for value in group if value is not None] for group in groups)
    return [lines.finite(sum(group) / len(group)) if group else None for group in known]
