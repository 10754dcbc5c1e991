"""Who gets the numbers of a training run: metrics.jsonl first, the services that were asked for, progress last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from vlmrun import heartbeat, logs
from vlmrun.config.job import StageJob
from vlmrun.config.schema import Service, services
from vlmrun.names import METRICS
from vlmrun.train.accelerated import Accelerated, Named
from vlmrun.train.log import Metrics, Row, Tracker, read
from vlmrun.train.progress import Bar, Lines
from vlmrun.train.scores import Score
from vlmrun.train.services import PROJECT, TensorBoard, WandB

log = logs.get(__name__)


class Guarded(Tracker):
    """A service that may fail: a full disk, a locked database or a lost network costs its numbers, not the training.

    What it raises first is told in a warning; from then on it gets nothing more.

    Args:
        make: opens the service.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._works = name, True
        self._inner: Tracker | None = None
        with self._guarded():
            self._inner = make()

    def track(self, row: Row) -> None:
        """Passes a row on."""
        if self._inner is not None and self._works:
            with self._guarded():
                self._inner.track(row)

    def evaluated(self, score: Score) -> None:
        """Passes an evaluation on."""
        if self._inner is not None and self._works:
            with self._guarded():
                self._inner.evaluated(score)

    def close(self) -> None:
        """Closes the service, one that failed as well: it may still write what it has."""
        if self._inner is not None:
            with self._guarded():
                self._inner.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the packages of eight services have errors of their own
            if self._works:
                said = f"{type(error).__name__}: {error}"
                log.warning("%s gets no more numbers of this training, all are in %s: %s", self._name, METRICS, said)
            self._works = False


class Thinned(Tracker):
    """Passes on every `every`-th row and the last one, and every evaluation."""

    def __init__(self, inner: Tracker, every: int, steps: int) -> None:
        self._inner, self._every, self._steps = inner, every, steps

    def track(self, row: Row) -> None:
        """Passes a row on when it is due."""
        if is_due(row, self._every, self._steps):
            self._inner.track(row)

    def evaluated(self, score: Score) -> None:
        """Passes it on."""
        self._inner.evaluated(score)

    def close(self) -> None:
        """Closes what it passes to."""
        self._inner.close()


def is_due(row: Row, every: int, steps: int) -> bool:
    """Whether services get a row."""
    return row.step % every == 0 or row.step == steps


def open_trackers(job: StageJob, every: int, steps: int, done: int, scores: list[Score]) -> list[Tracker]:
    """All that get numbers; rank 0 only.

    Args:
        every: updates between two rows that services get.
        steps: updates of the whole training run.
        done: updates before the checkpoint that it resumes from.
        scores: evaluations up to there.
    """
    found: list[Tracker] = [Metrics(job.path / METRICS, done)]
    asked = services(job.tracking)
    rows = [row for row in read(job.path / METRICS) if is_due(row, every, steps)]
    before: list[Row | Score] = sorted([*rows, *scores], key=lambda one: one.step)  # a row before its evaluation
    for name, service in asked.items():
        guarded = Guarded(name, partial(_open, name, service, job, done, before))
        found.append(Thinned(guarded, every, steps))
    progress = Bar if logs.is_terminal() else Lines
    found.append(progress(job.name, done, steps))
    return found


def close(trackers: Sequence[Tracker]) -> None:
    """Closes them all, whatever one of them raises. A service may take its time: to upload what is left."""
    heartbeat.beat("track")
    with contextlib.ExitStack() as stack:
        for tracker in reversed(trackers):
            stack.callback(tracker.close)


def _open(name: str, service: Service, job: StageJob, done: int, before: list[Row | Score]) -> Tracker:
    """One service."""
    folder = job.path / "logs"
    if name == "tensorboard":
        place = os.environ.get("TENSORBOARD_DIR")
        events = Path(place).expanduser() / f"{job.name}-{job.key}" if place else folder / "tensorboard"
        return TensorBoard(events, done)
    if name == "wandb":
        return WandB(job, folder / "wandb", before, service)
    root = job.path.parent.parent / "tracking" / name  # one for all runs, or nothing could be compared
    named = Named(f"{job.run}/{job.name}", service.project or PROJECT, service.group or job.run, root, service)
    return Accelerated(name, named, job.composed or job.stage.model_dump(), before)
