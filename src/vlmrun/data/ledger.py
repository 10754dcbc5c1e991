"""From the notes of a training's ranks to a row for each record (`data/ledger_rows.py`). Free of torch."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import artifact, jsonl
from vlmrun.data.dataset import Dataset

# What a rank notes of a sample it used: 22 bytes.
USE = np.dtype(
    [
        ("step", "<u4"),
        ("number", "<u4"),
        ("tokens", "<u4"),
        ("supervised", "<u4"),
        ("truncated", "?"),
        ("skipped", "?"),
        ("loss", "<f4"),
    ]
)
# Losses are added up as whole numbers of 1 / _UNITS: a sum of floats would depend on its order.
_UNITS = 2**32


class Sums:
    """Notes added up by record: a few numbers for each, whatever the number of notes."""

    def __init__(self, n_records: int) -> None:
        self.used = np.zeros(n_records, dtype=np.int64)
        self.tokens = np.zeros(n_records, dtype=np.int64)
        self.supervised = np.zeros(n_records, dtype=np.int64)
        self.truncated = np.zeros(n_records, dtype=bool)
        self.skipped = np.zeros(n_records, dtype=bool)
        self._steps = np.full((2, n_records), [[np.iinfo(np.int64).max], [-1]], dtype=np.int64)
        self.losses = np.full((2, n_records), np.nan)  # of the first use and the last
        self._total = np.zeros(n_records, dtype=np.int64)  # in units of 1 / _UNITS
        self._known = np.zeros(n_records, dtype=np.int64)

    def add(self, notes: np.ndarray) -> None:
        """Adds notes. Their order, which ranks and interruptions change, makes no difference."""
        number = notes["number"]
        np.add.at(self.used, number, 1)
        for name in ("tokens", "supervised"):
            np.maximum.at(getattr(self, name), number, notes[name])
        for name in ("truncated", "skipped"):
            np.logical_or.at(getattr(self, name), number, notes[name])
        notes = notes[~np.isnan(notes["loss"])]
        np.add.at(self._total, notes["number"], np.rint(notes["loss"].astype(np.float64) * _UNITS).astype(np.int64))
        np.add.at(self._known, notes["number"], 1)
        for note in notes:
            self._take(int(note["number"]), int(note["step"]), float(note["loss"]))

    def mean(self, number: int) -> float:
        """Mean loss over all uses of a record."""
        return float(self._total[number] / _UNITS / self._known[number])

    def _take(self, number: int, step: int, loss: float) -> None:
        if (step, loss) < (self._steps[0, number], self.losses[0, number]):
            self._steps[0, number], self.losses[0, number] = step, loss
        if (step, loss) > (self._steps[1, number], self.losses[1, number]):
            self._steps[1, number], self.losses[1, number] = step, loss


def write(path: Path, sums: Sums, dataset: Dataset, skipped: Path, sources: Mapping[str, str]) -> None:
    """Writes the rows of a dataset's records, then those of records that were left out before.

    Args:
        skipped: skipped.jsonl, with the reasons.
        sources: annotation file -> the data entry that a training reads it as.
    """
    left_out = list(jsonl.rows(skipped))
    reasons = {row["id"]: row["reason"] for row in left_out if "source" not in row}
    with (
        artifact.writing(path) as place,
        place.open("wb") as raw,
        # No time and no name in the header: the same training makes the same bytes.
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as text,
    ):
        for number in range(len(dataset)):
            text.write(_line(_row(sums, dataset, number, reasons)))
        for row in left_out:
            if row.get("source") in sources:
                where = {"data": sources[row["source"]], "record": row["index"], "id": row["id"]}
                text.write(_line({**where, "used": 0, "skipped": row["reason"]}))


def _row(sums: Sums, dataset: Dataset, number: int, reasons: Mapping[str, str]) -> dict[str, Any]:
    id = dataset.sample_id(number)
    row: dict[str, Any] = {"data": dataset.name(number), "record": dataset.place(number), "id": id}
    row["used"] = int(sums.used[number])
    if row["used"]:
        row |= {"tokens": int(sums.tokens[number]), "supervised": int(sums.supervised[number])}
    if sums.truncated[number]:
        row["truncated"] = True
    if sums.skipped[number]:
        row["skipped"] = reasons.get(id, "it could not be used")
    if not np.isnan(sums.losses[0, number]):
        row["losses"] = [round(float(loss), 6) for loss in sums.losses[:, number]]
        row["mean"] = round(sums.mean(number), 6)
    return row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
