"""Batches in the order of a schedule, loaded in this process or by workers: the result is the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Dataset
from vlmrun.data.packing import Row
from vlmrun.data.sampler import Schedule
from vlmrun.errors import VlmrunError


@dataclass(frozen=True)
class Reading:
    """How batches are read ahead; it changes nothing in them.

    Args:
        workers: loader processes; 0 loads in this process and starts none.
        prefetch: micro batches that each worker makes ahead.
        pin: into memory that a GPU copies from while it computes.
    """

    workers: int
    prefetch: int = 2
    pin: bool = False


class _MicroBatches(Sampler[list[Any]]):
    """One rank's micro batches from a step on."""

    def __init__(self, schedule: Schedule, rank: int, first_step: int) -> None:
        self.schedule = schedule
        self.rank = rank
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[Any]]:
        for step in range(self.first_step, self.schedule.steps):
            yield from self.schedule.micro_batches(step, self.rank)

    def __len__(self) -> int:
        return (self.schedule.steps - self.first_step) * self.schedule.accumulation


class _MicroBatchLoader:
    """Collated micro batches by their indices; in place of one that cannot be used, its error as a value.

    Raised in a worker, the error would be rebuilt by torch from a printed traceback, its parts lost.
    """

    def __init__(self, dataset: Dataset, collator: Collator) -> None:
        self.dataset = dataset
        self.collator = collator

    def __getitem__(self, indices: list[int] | list[Row]) -> dict[str, Any] | VlmrunError:
        rows = [index if isinstance(index, list) else [index] for index in indices]
        sizes = [len(row) for row in rows] if isinstance(indices[0], list) else None
        try:
            return self.collator([self.dataset[index] for row in rows for index in row], sizes)
        except VlmrunError as error:
            return error


def batches(
    dataset: Dataset,
    schedule: Schedule,
    collator: Collator,
    *,
    rank: int,
    first_step: int,
    reading: Reading,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields (step, the rank's collated micro batches of that step), steps counting from 0.

    Args:
        first_step: where to continue; samples before it are not touched.
    Raises:
        DataError: for a sample that cannot be used; the same for any number of workers.
    """
    if reading.workers > 0:
        # tokenizers would warn in every fork that its threads are not usable there.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader: DataLoader[Any] = DataLoader(
        _MicroBatchLoader(dataset, collator),  # type: ignore[arg-type]
        sampler=_MicroBatches(schedule, rank, first_step),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=reading.workers,
        prefetch_factor=reading.prefetch if reading.workers else None,
        pin_memory=reading.pin,
        worker_init_fn=_start_worker,
        # DataLoader draws a seed even when nothing uses it: not from the global generator, which training relies on.
        generator=torch.Generator().manual_seed(schedule.seed),
    )
    iterator = iter(loader)
    try:
        for step in range(first_step, schedule.steps):
            yield step, [_checked(next(iterator)) for _ in range(schedule.accumulation)]
    finally:
        del iterator  # ends the workers now, not when the collector comes by


def _checked(loaded: dict[str, Any] | VlmrunError) -> dict[str, Any]:
    if isinstance(loaded, VlmrunError):
        raise loaded
    return loaded


def _unchanged(loaded: Any) -> Any:
    """Instead of torch's default, which would look into every batch for arrays to convert."""
    return loaded


def _start_worker(_: int) -> None:
    """A worker ends on SIGTERM and leaves Ctrl-C and SIGUSR1 to the trainer, whatever handlers it inherited."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)
