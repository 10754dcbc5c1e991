"""Signs of progress that each rank leaves in its stage's `logs/` for the process that watches it.

The main thread writes them as it goes from one piece of work to the next. A thread of its own would beat on while the
training hangs. One short write to an open file each: microseconds, and nothing is synced.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

LEFT = "left"
# The work of an update, which takes about as long every time. All else (loading, saving ...) has its own allowance.
IN_A_STEP = ("data", "forward", "backward", "update")
_WIDTH = 320  # bytes of a beat: always as many, so that no rest of a longer one stays behind


@dataclass(frozen=True)
class Beat:
    """What a rank was doing when it last made progress.

    Args:
        step: the update it works on, from 1; 0 before the first.
        at: of the machine's monotonic clock, which all its processes share.
        slowest: seconds of the longest piece of work in the steps so far; None before one is finished.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    at: float
    slowest: float | None

    @property
    def place(self) -> str:
        """`in step 7 (forward)`, `before the first step (load)`."""
        where = f"in step {self.step}" if self.step else "before the first step"
        return f"{where} ({self.phase})"


class Heart:
    """Writes one rank's beats."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"heartbeat-{rank}.json"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._rank, self._host = rank, socket.gethostname()
        self._step, self._phase, self._at = 0, "start", time.monotonic()
        self._finished = 0
        self._slowest: float | None = None
        self._longest_of_step = 0.0

    def beat(self, phase: str, step: int | None = None) -> None:
        """Says that the main thread now begins with `phase`."""
        now = time.monotonic()
        if self._phase in IN_A_STEP:
            self._longest_of_step = max(self._longest_of_step, now - self._at)
        if step is not None and step != self._step:
            self._next_step(step)
        self._phase, self._at = phase, now
        beat = Beat(self._rank, self._host, os.getpid(), self._step, phase, now, self._slowest)
        try:
            os.pwrite(self._fd, json.dumps(asdict(beat)).ljust(_WIDTH).encode(), 0)
        except OSError:
            # On a full disk a hang would look the same: better not watched than killed.
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Says that this rank leaves in order."""
        self.beat(LEFT)
        os.close(self._fd)

    def _next_step(self, step: int) -> None:
        """The first step (compilers, caches, first files) is no measure for later ones once there is another."""
        if self._step:
            self._finished += 1
            known = self._slowest if self._finished > 2 else None
            self._slowest = max(known or 0.0, self._longest_of_step)
        self._step, self._longest_of_step = step, 0.0


_heart: Heart | None = None


def start(folder: Path, rank: int) -> None:
    """From now on this process is watched."""
    global _heart
    _heart = Heart(folder, rank)


def beat(phase: str, step: int | None = None) -> None:
    """Leaves a sign, if this process is watched."""
    if _heart is not None:
        _heart.beat(phase, step)


def stop() -> None:
    """The last sign: this process is about to leave in order."""
    global _heart
    if _heart is not None:
        _heart.close()
        _heart = None


def read(folder: Path) -> list[Beat]:
    """The last beat of every rank of this machine, in rank order; one that is just being written is passed over."""
    found = []
    for path in folder.glob("heartbeat-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Beat(**json.loads(path.read_bytes())))
    return sorted((beat for beat in found if beat.host == socket.gethostname()), key=lambda beat: beat.rank)


def clear(folder: Path) -> None:
    """Removes what ranks of this machine left in an earlier attempt."""
    for beat in read(folder):
        (folder / f"heartbeat-{beat.rank}.json").unlink(missing_ok=True)
