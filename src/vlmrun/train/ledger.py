"""Which records a training used: every rank notes the samples of its micro batches, and the end makes a row of each.

    ledger/rank-N.uses   of every sample used by rank N: step, number, tokens, supervised tokens, marks, loss
    ledger/before.uses   the same of all ranks before the run was resumed
    ledger.jsonl.gz      what comes of them: a row for each record (`data/ledger.py`)

A note takes 22 bytes on disk and none in memory. Notes of steps after the checkpoint that a run resumes from are
removed, whatever number of ranks made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from torch import Tensor

from vlmrun import artifact
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.data import ledger
from vlmrun.data.collate import Use
from vlmrun.data.dataset import Dataset
from vlmrun.names import LEDGER, SKIPPED
from vlmrun.train import dist

_NOTES = "ledger"
_BEFORE = "before.uses"
_PIECE = 1 << 16  # notes that are read at a time


class Ledger:
    """The notes of one training run. Every rank makes it; ranks that read the same samples note them once."""

    def __init__(self, job: StageJob) -> None:
        self._job, self._folder = job, job.path / _NOTES
        self._handle: IO[bytes] | None = None

    def open(self, done: int) -> None:
        """Begins, or continues after N steps. A collective."""
        if (self._job.path / LEDGER).is_file():  # killed after it was finished: there is nothing to add
            return
        if dist.is_main():
            self._cut(done)
        dist.barrier()
        if dist.rank() % dist.replicas() == 0:
            self._handle = (self._folder / f"rank-{dist.data_rank()}.uses").open("wb")

    def add(self, step: int, uses: Sequence[Use], losses: Tensor | None) -> None:
        """Notes the samples of a micro batch; see `Plan.used`."""
        if self._handle is None:
            return
        notes = np.zeros(len(uses), dtype=ledger.USE)
        notes["step"] = step
        for name in Use._fields[1:]:
            notes[name] = [getattr(use, name) for use in uses]
        notes["number"] = [use.number for use in uses]
        notes["loss"] = np.nan
        if losses is not None:
            each = losses.float().cpu().numpy()
            ends = np.cumsum(notes["supervised"])
            for place, (end, n) in enumerate(zip(ends, notes["supervised"], strict=True)):
                if n:
                    notes["loss"][place] = each[end - n : end].mean()
        self._handle.write(notes.tobytes())
        self._handle.flush()

    def close(self) -> None:
        """Closes this rank's file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def finish(self, dataset: Dataset) -> None:
        """Writes `ledger.jsonl.gz` and removes the notes; rank 0 only, once all ranks have closed theirs."""
        if not self._folder.is_dir():
            return
        stage = self._job.stage
        assert isinstance(stage, TrainStage)
        sources = {self._job.data[name].annotations: name for name in stage.data}
        summed = ledger.Sums(len(dataset))
        for piece in self._notes():
            summed.add(piece)
        ledger.write(self._job.path / LEDGER, summed, dataset, self._job.path / SKIPPED, sources)
        shutil.rmtree(self._folder)

    def _cut(self, done: int) -> None:
        """Leaves the notes of the first N steps, in one file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._folder.glob("*.uses"))
        with artifact.writing(self._folder / _BEFORE) as path, path.open("wb") as handle:
            for piece in self._notes():
                handle.write(piece[piece["step"] <= done].tobytes())
        for file in files:
            if file.name != _BEFORE:
                file.unlink()

    def _notes(self) -> Iterator[np.ndarray]:
        for file in sorted(self._folder.glob("*.uses")):
            with file.open("rb") as handle:
                while block := handle.read(_PIECE * ledger.USE.itemsize):
                    yield np.frombuffer(block[: len(block) // ledger.USE.itemsize * ledger.USE.itemsize], ledger.USE)
