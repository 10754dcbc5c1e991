"""Numbers of a run: metrics.jsonl always, tensorboard and wandb when asked for, and progress for who watches."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact, logs
from vlmrun.config.job import StageJob
from vlmrun.names import METRICS
from vlmrun.train.scores import Score

log = logs.get(__name__)

_SECONDS_BETWEEN_LINES = 3.0
_TRACKED = ("loss", "lr", "grad_norm", "supervised_tokens", "tokens", "epoch", "loss_scale")


@dataclass(frozen=True)
class Row:
    """One update. `loss` is None when no token of it was supervised. `step` counts from 1.

    All but `seconds` and `wait_seconds` (rank 0's, for its data) is bit-identical when a run is resumed or repeated.
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


class Tracker(ABC):
    """Somebody who is told numbers."""

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
        """Args: done: steps of the checkpoint a run goes on from; later rows are cut off."""
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


class TensorBoard(Tracker):
    """Event files in `logs/tensorboard`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def track(self, row: Row) -> None:
        """One scalar per number."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(f"train/{name}", value, row.step)

    def evaluated(self, score: Score) -> None:
        """One scalar per number."""
        for name, value in score.numbers.items():
            self._writer.add_scalar(f"eval/{name}", value, score.step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB(Tracker):
    """A wandb run in `logs/wandb`. Offline unless `wandb_online` was asked for by name."""

    def __init__(self, job: StageJob, folder: Path, *, online: bool) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=job.run,
            name=f"{job.run}/{job.name}",
            group=job.run,
            id=f"{job.name}-{job.key}"[:64],
            resume="allow" if online else None,
            dir=str(folder),
            mode="online" if online else "offline",
            config=job.stage.model_dump(),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )

    def track(self, row: Row) -> None:
        """Logs at the row's step."""
        self._run.log({f"train/{name}": value for name, value in _numbers(row).items()}, step=row.step)

    def evaluated(self, score: Score) -> None:
        """Logs at the step."""
        self._run.log({f"eval/{name}": value for name, value in score.numbers.items()}, step=score.step)

    def close(self) -> None:
        """Ends the run; online, waits for the upload."""
        self._run.finish()


class Lines(Tracker):
    """Progress as plain lines, not more than one every few seconds, and always the last one."""

    def __init__(self, name: str, done: int, steps: int) -> None:
        self._pace = _Pace(name, done, steps)
        self._spoken = time.monotonic()

    def track(self, row: Row) -> None:
        """Says a line when it is time."""
        now = time.monotonic()
        if now - self._spoken >= _SECONDS_BETWEEN_LINES or row.step == self._pace.steps:
            self._spoken = now
            log.info("%s", self._pace.line(row))

    def close(self) -> None:
        """Nothing is held back."""


class Bar(Tracker):
    """Progress as a bar on a terminal."""

    def __init__(self, name: str, done: int, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace = _Pace(name, done, steps)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[said]}"))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=False)
        self._task = self._progress.add_task(name, total=steps, completed=done, said="")
        self._progress.start()
        # Handlers made before the bar write past it and tear it; while it runs they go through it.
        self._moved = [h for h in logging.getLogger("vlmrun").handlers if _speaks(h)]
        for handler in self._moved:
            handler.setStream(sys.stderr)

    def track(self, row: Row) -> None:
        """Moves the bar."""
        said = self._pace.line(row).removeprefix(self._pace.name).strip()
        self._progress.update(self._task, completed=row.step, said=said)

    def close(self) -> None:
        """Leaves the last state standing."""
        self._progress.stop()
        for handler in self._moved:
            handler.setStream(sys.stderr)


def open_trackers(job: StageJob, steps: int, done: int) -> list[Tracker]:
    """All who are told the numbers; rank 0 only. metrics.jsonl comes first and gets every row."""
    found: list[Tracker] = [Metrics(job.path / METRICS, done)]
    folder = job.path / "logs"
    if "tensorboard" in job.tracking:
        found.append(TensorBoard(folder / "tensorboard", done))
    if "wandb" in job.tracking or "wandb_online" in job.tracking:
        found.append(WandB(job, folder / "wandb", online="wandb_online" in job.tracking))
    progress = Bar if logs.is_terminal() else Lines
    found.append(progress(job.name, done, steps))
    return found


@dataclass
class _Pace:
    """Speed and remaining time since this process began."""

    name: str
    done: int
    steps: int

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def line(self, row: Row) -> str:
        """`instruct  120/400  loss 0.412  lr 1.9e-03  5.1 it/s  eta 0:54`."""
        speed = (row.step - self.done) / max(time.monotonic() - self._began, 1e-9)
        left = int((self.steps - row.step) / speed)
        hours, rest = divmod(left, 3600)
        eta = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
        loss = "none" if row.loss is None else f"{row.loss:.3f}"
        return f"{self.name}  {row.step}/{self.steps}  loss {loss}  lr {row.lr:.1e}  {speed:.1f} it/s  eta {eta}"


def _numbers(row: Row) -> dict[str, float]:
    values = {name: getattr(row, name) for name in _TRACKED}
    values["data_wait"] = data_wait([row])
    return {name: float(value) for name, value in values.items() if value is not None}


def data_wait(rows: Sequence[Row]) -> float:
    """The share of the time that was spent waiting for data."""
    seconds = sum(row.seconds for row in rows)
    return sum(row.wait_seconds for row in rows) / seconds if seconds else 0.0


def _speaks(handler: Any) -> bool:
    return type(handler) is logging.StreamHandler and handler.stream is not sys.stdout
