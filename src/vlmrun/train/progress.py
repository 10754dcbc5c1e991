"""Progress of a training run, for the one who watches: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from typing import Any

from vlmrun import logs
from vlmrun.train.log import Row, Tracker

log = logs.get(__name__)

_SECONDS_BETWEEN_LINES = 3.0


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
        handlers = logging.getLogger("vlmrun").handlers
        self._moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and _speaks(h)]
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
        return f"{self.name}  {row.step}/{self.steps}  loss {loss}  lr {_rates(row)}  {speed:.1f} it/s  eta {eta}"


def _rates(row: Row) -> str:
    """One number where all parts share it, otherwise one for each part."""
    if len(set(row.lrs.values())) < 2:
        return f"{row.lr:.1e}"
    return ", ".join(f"{part} {rate:.1e}" for part, rate in row.lrs.items())


def _speaks(handler: Any) -> bool:
    return type(handler) is logging.StreamHandler and handler.stream is not sys.stdout
