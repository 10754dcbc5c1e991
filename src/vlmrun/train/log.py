"""Numbers of a training run: metrics.jsonl, and who else gets them (`services.py`, `progress.py`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlmrun import artifact
from vlmrun.train.scores import Score

_TRACKED = ("loss", "lr", "grad_norm", "supervised_tokens", "tokens", "epoch", "loss_scale")


@dataclass(frozen=True)
class Row:
    """One update. `loss` is None when no token of it was supervised. `step` counts from 1.

    All but `seconds` and `wait_seconds` (rank 0's, for its data) is bit-identical when a run is resumed or repeated.

    Attributes:
        lr: learning rate of the update, as the optimizer had it: the LLM's, or where it is frozen that of the first
            part that trains.
        lrs: the same for every part that trains, by its name.
    """

    step: int
    epoch: float
    loss: float | None
    lr: float
    grad_norm: float
    supervised_tokens: int
    tokens: int
    samples: int
    seconds: float
    overflow: bool = False  # fp16: the gradients did not fit and the update was left out; `grad_norm` is 0 then
    wait_seconds: float = 0.0
    loss_scale: float | None = None  # fp16: what the loss of this update was multiplied by
    lrs: dict[str, float] = field(default_factory=dict)


class Tracker(ABC):
    """Somewhere numbers are written to."""

    @abstractmethod
    def track(self, row: Row) -> None:
        """Takes one row."""

    def evaluated(self, score: Score) -> None:  # noqa: B027 - most have nothing to do with it
        """Takes an evaluation on held-out data."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""


class Metrics(Tracker):
    """metrics.jsonl: a row per update, written at once, continued on resume.

    Rows are flushed line by line but not synced: after a crash the file is cut back to the checkpoint anyway.
    """

    def __init__(self, path: Path, done: int) -> None:
        """Args: done: steps of the checkpoint that a run resumes from; later rows are removed."""
        kept = [json.dumps(asdict(row)) + "\n" for row in read(path) if row.step <= done]
        artifact.write_text(path, "".join(kept))
        self._handle = path.open("a", encoding="utf-8")

    def track(self, row: Row) -> None:
        """Appends a row."""
        self._handle.write(json.dumps(asdict(row)) + "\n")
        self._handle.flush()

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()


def read(path: Path) -> Iterator[Row]:
    """Rows of a metrics.jsonl; a last line torn by a kill is passed over."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield Row(**json.loads(line))
        except (ValueError, TypeError):
            return


def leading(lrs: dict[str, float]) -> float:
    """The learning rate that stands for all: the LLM's, or that of the first part that trains."""
    return lrs.get("llm", next(iter(lrs.values())))


def numbers(row: Row) -> dict[str, float]:
    """What a curve is drawn of, by name: those that are known, and `lr/PART` where parts train at several rates."""
    values = {name: getattr(row, name) for name in _TRACKED}
    values["data_wait"] = data_wait([row])
    values |= {f"lr/{part}": rate for part, rate in row.lrs.items() if len(row.lrs) > 1}
    return {name: float(value) for name, value in values.items() if value is not None}


def data_wait(rows: Sequence[Row]) -> float:
    """The share of the time that was spent waiting for data."""
    seconds = sum(row.seconds for row in rows)
    return sum(row.wait_seconds for row in rows) / seconds if seconds else 0.0
