"""Which records a training used: every rank notes the samples of its micro batches, and the end makes a row of each.

    ledger/rank-N.uses   of every sample used by rank N: step, number, tokens, supervised tokens, marks, loss
    ledger/before.uses   the same of all ranks before the run was resumed
    ledger.jsonl.gz      what comes of them: a row for each record (`data/ledger.py`)

A note takes 22 bytes on disk and none in memory. Notes of steps after the checkpoint that a run resumes from are
removed, whatever number of ranks made them. A ledger is whole or is not written: a training never fails by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from torch import Tensor

from vlmrun import artifact, logs
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.data import ledger
from vlmrun.data.collate import Use
from vlmrun.data.dataset import Dataset
from vlmrun.names import LEDGER, METRICS, SKIPPED
from vlmrun.train import dist
from vlmrun.train.log import read

log = logs.get(__name__)

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
        if dist.broadcast_object(self._begin(done) if dist.is_main() else None) and dist.rank() % dist.replicas() == 0:
            with self._guarded():
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
        with self._guarded():
            self._handle.write(notes.tobytes())
            self._handle.flush()

    def sync(self) -> None:
        """Makes this rank's notes as durable as the checkpoint that is about to be saved."""
        if self._handle is not None:
            with self._guarded():
                os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Closes this rank's file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with self._guarded():
                handle.close()

    def finish(self, dataset: Dataset, steps: int) -> None:
        """Writes `ledger.jsonl.gz` and removes the notes; rank 0 only, once all ranks have closed theirs.

        Whatever is wrong with the notes of N steps is told, and there is no ledger then: the training is finished.
        """
        if self._folder.is_dir() and not (self._job.path / LEDGER).is_file():
            try:
                self._require(steps)
                self._write(dataset)
            except Exception as error:  # noqa: BLE001 - notes may be damaged in any way, and the weights are fine
                _tell(error)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, dataset: Dataset) -> None:
        stage = self._job.stage
        assert isinstance(stage, TrainStage)
        sources = {self._job.data[name].annotations: name for name in stage.data}
        summed = ledger.Sums(len(dataset))
        for piece in self._notes():
            summed.add(piece)
        ledger.write(self._job.path / LEDGER, summed, dataset, self._job.path / SKIPPED, sources)

    def _begin(self, done: int) -> bool:
        """Leaves the notes of the first N steps; false where there is nothing to note, or the notes have a gap."""
        if (self._job.path / LEDGER).is_file():  # killed after it was finished: there is nothing to add
            return False
        try:
            self._cut(done)
            self._require(done)
        except (OSError, ValueError) as error:
            _tell(error)
            shutil.rmtree(self._folder, ignore_errors=True)
            return False
        return True

    def _require(self, steps: int) -> None:
        """Raises ValueError unless there are notes of every sample of N steps, as far as metrics.jsonl tells them."""
        noted = np.zeros(steps + 1, dtype=np.int64)
        for piece in self._notes():
            np.add.at(noted, piece["step"][piece["step"] <= steps], 1)
        used = {row.step: row.samples for row in read(self._job.path / METRICS)}
        for step in range(1, steps + 1):
            if noted[step] == 0 or noted[step] != used.get(step, noted[step]):
                raise ValueError(f"notes of step {step} are missing ({self._folder})")

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
        """Of all ranks. Killed while `_cut` removes files, they are in the first one too, which ends with a step."""
        last = 0
        for file in sorted(self._folder.glob("*.uses")):
            with file.open("rb") as handle:
                while block := handle.read(_PIECE * ledger.USE.itemsize):
                    piece = np.frombuffer(block[: len(block) // ledger.USE.itemsize * ledger.USE.itemsize], ledger.USE)
                    if file.name == _BEFORE:
                        last = max(last, int(piece["step"].max(initial=0)))
                        yield piece
                    else:
                        yield piece[piece["step"] > last]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A disk that is full or lost ends this rank's notes, and not the training; `_require` finds the gap."""
        try:
            yield
        except OSError as error:
            _tell(error)
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):  # it may try again to write what is left
                if handle is not None:
                    handle.close()


def _tell(error: Exception) -> None:
    log.warning("this training will have no ledger of its records: %s", error)
