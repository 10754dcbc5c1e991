"""Watches the ranks of a training by their heartbeats: who died, who hangs, and what they said last."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vlmrun import heartbeat, logs
from vlmrun.config.job import StageJob
from vlmrun.errors import LaunchError
from vlmrun.heartbeat import IN_A_STEP, LEFT, Beat
from vlmrun.run import processes

log = logs.get(__name__)

GOES_ON = "the same command resumes from the newest checkpoint"
# A piece of work may take N times as long as the slowest one before it.
_PATIENCE = 3.0
_SECONDS_BETWEEN_LOOKS_AT_STACKS = 0.5
_LOOKS_AT_STACKS = 20
_LINES = 5
_TAIL_BYTES = 8192


class Watch:
    """The ranks of this machine, from the start of a job to its end.

    Attributes:
        dead: ranks that were gone without leaving when that was first seen; later ones only follow them.
        hung: the rank that keeps the others waiting, once one has made no progress for too long.
        step: the furthest update that a rank was working on.
    """

    def __init__(self, job: StageJob) -> None:
        self._folder = job.path / "logs"
        self._hang, self._timeout = job.hardware.hang_seconds, job.hardware.timeout_seconds
        self.dead: list[Beat] = []
        self.hung: Beat | None = None
        self.step = 0
        self._last: list[Beat] = []
        self._told: Beat | None = None
        heartbeat.clear(self._folder)

    def look(self) -> None:
        """Takes in how things stand now."""
        self._last = heartbeat.read(self._folder)
        self.step = max([self.step, *(beat.step for beat in self._last)])
        gone = [beat for beat in self._last if beat.phase != LEFT and not _lives(beat.pid)]
        if gone and not self.dead:
            # Who has left in order meanwhile says so in the file by now.
            still = {(beat.rank, beat.phase) for beat in heartbeat.read(self._folder)}
            self.dead = [beat for beat in gone if (beat.rank, LEFT) not in still]
        if self._hang is not None:
            self.hung = self._behind(self._allowed)
            self._tell(self._behind(lambda _: float(self._hang or 0)))

    def pass_on(self, number: int) -> bool:
        """Sends a signal to every rank that works; returns whether there is one."""
        working = [b.pid for b in heartbeat.read(self._folder) if b.phase != LEFT and _lives(b.pid)]
        for pid in working:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        return bool(working)

    def end(self) -> None:
        """Kills the ranks, stopped ones too, after each has written where it stands to `logs/stack-N.txt`.

        On a busy machine that takes its time; a rank that writes nothing is not waited for longer than ten seconds.
        """
        self.pass_on(signal.SIGUSR2)
        before: list[int] = []
        for _ in range(_LOOKS_AT_STACKS):
            time.sleep(_SECONDS_BETWEEN_LOOKS_AT_STACKS)
            sizes = [self._written(beat) for beat in self._last if _lives(beat.pid) and not _is_stopped(beat.pid)]
            if all(sizes) and sizes == before:
                break
            before = sizes
        self.pass_on(signal.SIGKILL)

    def died(self, how: str) -> LaunchError:
        """The error for ranks that are gone. Args: how: what is known of it, such as `was killed by SIGKILL`."""
        first = self.dead[0]
        others = "".join(f", rank {beat.rank} {beat.place}" for beat in self.dead[1:])
        return LaunchError(
            f"rank {first.rank} {how} {first.place}{others} without saying why{self._words(first.rank)}",
            str(self._folder / f"rank-{first.rank}.log"),
            f"SIGKILL is often the kernel's answer to too little memory (see dmesg); {GOES_ON}",
        )

    def hangs(self) -> LaunchError:
        """The error for a rank without progress."""
        assert self.hung is not None
        rank, now = self.hung.rank, time.monotonic()
        others = "".join(
            f"\n  rank {beat.rank}: {now - beat.at:.0f} s {beat.place}" for beat in self._last if beat.rank != rank
        )
        return LaunchError(
            f"rank {rank} hangs: no progress for {now - self.hung.at:.0f} s {self.hung.place}; all ranks were ended"
            f"{others}{self._words(rank)}",
            str(self._folder / f"rank-{rank}.log"),
            f"logs/stack-*.txt say where each rank stood; if it was only slow, raise hardware.hang_seconds; {GOES_ON}",
        )

    def _tell(self, slow: Beat | None) -> None:
        """Says once who makes no progress where that is no reason yet to end it: loading and first steps take long."""
        if slow is None or self.hung is not None or self._told == slow:
            return
        self._told = slow
        log.warning(
            "rank %d: no progress for %.0f s %s; it is ended after %.0f s%s",
            slow.rank, time.monotonic() - slow.at, slow.place, self._allowed(slow), self._words(slow.rank),
        )  # fmt: skip

    def _behind(self, allowed: Callable[[Beat], float]) -> Beat | None:
        """The one furthest behind, when another has waited for longer than is allowed, and it is not in time itself.

        Rank 0 may keep the others waiting with what only it does: a slow tracker.
        """
        now = time.monotonic()
        working = [beat for beat in self._last if beat.phase != LEFT and _lives(beat.pid)]
        if not any(now - beat.at > allowed(beat) for beat in working):
            return None
        last = min(working, key=lambda beat: (not _is_stopped(beat.pid), beat.step, _order(beat.phase), beat.at))
        return last if now - last.at > allowed(last) or _is_stopped(last.pid) else None

    def _allowed(self, beat: Beat) -> float:
        assert self._hang is not None
        if beat.phase in IN_A_STEP and beat.slowest is not None:
            return max(self._hang, _PATIENCE * beat.slowest)
        return max(self._hang, self._timeout)

    def _written(self, beat: Beat) -> int:
        """Bytes of where a rank says it stands."""
        with contextlib.suppress(OSError):
            return (self._folder / f"stack-{beat.rank}.txt").stat().st_size
        return 0

    def _words(self, rank: int) -> str:
        lines = _tail(self._folder / f"rank-{rank}.log")
        return f"\n  rank-{rank}.log ends with:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def _order(phase: str) -> int:
    return IN_A_STEP.index(phase) if phase in IN_A_STEP else len(IN_A_STEP)


def _lives(pid: int) -> bool:
    return processes.status(pid) not in ("", "zombie", "dead")


def _is_stopped(pid: int) -> bool:
    return processes.status(pid) in ("stopped", "tracing-stop")


def _tail(path: Path) -> Iterable[str]:
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return handle.read().decode("utf-8", errors="replace").splitlines()[-_LINES:]
    except OSError:
        return []
