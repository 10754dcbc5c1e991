"""From a job to running ranks, and what became of them. What is started is a pure function of the job (`argv`)."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType

from vlmrun import artifact, kinds, logs
from vlmrun.cluster.channel import Guard
from vlmrun.cluster.leader import NOBODY, Crew
from vlmrun.cluster.node import Node
from vlmrun.config.job import FAILURE_FILE, RENDEZVOUS, StageJob
from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError, VlmrunError, error_from_dict
from vlmrun.run import argv
from vlmrun.run.watch import Watch

log = logs.get(__name__)

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 0.25
_GOES_ON = "the same command resumes there"
_BY_CODE = {kind.exit_code: kind for kind in (ConfigError, DataError, CheckpointError, LaunchError)}


def run(job: StageJob, lock_fd: int, crew: Crew = NOBODY) -> None:
    """Starts the ranks of `job.json`, forwards signals, watches and waits; starts them again as often as asked for.

    Args:
        crew: the other nodes, which start theirs when we do.

    Raises:
        VlmrunError: the worker's own error, or a LaunchError when one died without saying why, or hangs.
        KeyboardInterrupt: when the person stopped it; the worker has saved by then.
    """
    before = 0  # the step that the attempt before failed in
    for attempt in itertools.count():
        watch = Watch(job)
        error = _attempt(job, lock_fd, watch, attempt, crew)
        if error is None:
            return
        if not _may_pass(error):
            raise error
        if attempt > 0 and 0 < watch.step == before:
            raise _told(error, f"it failed in step {before} both times, so it is not started again")
        if attempt == job.hardware.max_restarts:
            raise _told(error, f"after {attempt} restart{'s'[: attempt != 1]}") if attempt else error
        before = watch.step
        log.warning("%s\nrestart %d of %d", error, attempt + 1, job.hardware.max_restarts)


def _attempt(job: StageJob, lock_fd: int, watch: Watch, attempt: int, crew: Crew) -> VlmrunError | None:
    """One start of all ranks, and what went wrong with it."""
    failure = job.path / FAILURE_FILE
    failure.unlink(missing_ok=True)
    port = _free_port()
    if kinds.of(job.stage).shares:
        crew.start(job.name, attempt, port)
    code, stopped = once(job, Start(port, attempt, crew.node), crew.guard, watch, lock_fd)
    error = error_from_dict(json.loads(failure.read_text("utf-8"))) if failure.is_file() else None
    if stopped:
        raise KeyboardInterrupt(_farewell(job, error))
    if watch.dead and (error is None or error.reason == "lost_rank"):
        killed = code < 0 and not watch.hung  # else it was us who ended what the dead rank had left waiting
        return watch.died(f"was killed by {signal.Signals(-code).name}" if killed else "died")
    if watch.hung:
        return watch.hangs()
    if code != 0 and (error is None or isinstance(error, LaunchError)):
        crew.require()
    return error or (_unexplained(job, code) if code != 0 else None)


def _may_pass(error: VlmrunError) -> bool:
    """Whether another start may go better: not when the user stopped it, and not when an input is wrong."""
    return type(error) in (VlmrunError, LaunchError) and error.reason != "stopped"


def _told(error: VlmrunError, reason: str) -> VlmrunError:
    first, *others = error.problems
    return type(error)([replace(first, what=f"{first.what} ({reason})"), *others], reason=error.reason)


@contextlib.contextmanager
def _meeting_place(job: StageJob) -> Iterator[dict[str, str]]:
    """For the ranks of one node: a folder of their own to meet in, so that they open no port others could reach."""
    if job.hardware.nodes > 1 or job.hardware.launcher == "inline":
        yield {}
        return
    shared = str(job.path) if job.hardware.launcher == "srun" else None  # its node may be another than ours
    with tempfile.TemporaryDirectory(prefix=".vlmrun-ranks-", dir=shared, ignore_cleanup_errors=True) as folder:
        yield {RENDEZVOUS: folder}


@dataclass(frozen=True)
class Start:
    """One start of a job's ranks: where they meet, how often they were started before, and on which node these are."""

    port: int
    attempt: int
    node: Node


def once(job: StageJob, start: Start, guard: Guard, watch: Watch, *held: int) -> tuple[int, bool]:
    """Starts this node's ranks and waits for them.

    Args:
        guard: may end them.
        watch: looks after them.
        held: file descriptors that they inherit.

    Returns:
        The exit code, and whether we were asked to stop.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with _signals(watch) as signals, _meeting_place(job) as meeting:
        process = subprocess.Popen(
            argv.command(job, start.port, visible, start.attempt, start.node),
            env=argv.environment(job, os.environ, start.port, start.node) | meeting,
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on once
            preexec_fn=_prepare_child,
            pass_fds=held,
            stdout=2,  # launchers chatter on stdout, which belongs to results one may pipe
        )
        signals.go_to(process)
        with guard.watching(process):
            return _watched(process, watch), signals.stops > 0


def _farewell(job: StageJob, error: VlmrunError | None) -> str:
    """What to say when the user stopped us."""
    if artifact.read(job.path) is not None:
        return f"stage {job.name!r} had finished when it was stopped; {_GOES_ON}"
    if error is not None and error.reason == "stopped":
        return error.problems[0].what
    # Bugs and lost ranks are what a rank reports whose neighbor left first, not what the person did.
    by_the_way = error is None or type(error) in (VlmrunError, LaunchError)
    return f"stopped; {_GOES_ON}" if by_the_way else str(error)


def _unexplained(job: StageJob, code: int) -> VlmrunError:
    """The error of a worker that left none: on a full disk it could only print it."""
    logs = str(job.path / "logs")
    if code in _BY_CODE:
        what = f"stage {job.name!r} ended with exit code {code}"
        return _BY_CODE[code](what, logs, f"the reason is printed above; once it is gone, {_GOES_ON}")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return LaunchError(
        f"the worker of stage {job.name!r} {how} without saying why",
        logs,
        "the same command resumes from the newest checkpoint",
    )


class _Signals:
    """Passes on what we are asked: the first wish to stop as SIGTERM, a second one kills, SIGUSR1 saves.

    SIGTERM ends a Python that still imports without a traceback, as SIGINT does not. It goes to the ranks themselves: a
    launcher would give them 30 seconds and then kill them, saved or not; of SIGUSR1 it dies.

    Attributes:
        stops: how often we were asked to stop.
    """

    def __init__(self, watch: Watch) -> None:
        self.stops = 0
        self._watch = watch
        self._process: subprocess.Popen[bytes] | None = None

    def go_to(self, process: subprocess.Popen[bytes]) -> None:
        """From here on there is a process to tell: also of what came while it was being started."""
        self._process = process
        if self.stops:
            self._pass_on()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM."""
        self.stops += 1
        self._pass_on()

    def save(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1."""
        self._watch.pass_on(number)

    def _pass_on(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.stops > 1:
                self._watch.pass_on(signal.SIGKILL)
                os.killpg(process.pid, signal.SIGKILL)
            elif not self._watch.pass_on(signal.SIGTERM):
                process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _signals(watch: Watch) -> Iterator[_Signals]:
    """Takes signals from before a process is started: one that came just after would leave it behind."""
    signals = _Signals(watch)
    handlers = {signal.SIGINT: signals.stop, signal.SIGTERM: signals.stop, signal.SIGUSR1: signals.save}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(process: subprocess.Popen[bytes], watch: Watch) -> int:
    """Waits for the end, looking at the ranks now and then; ends them all when one hangs."""
    ends = os.pidfd_open(process.pid)
    try:
        while not select.select([ends], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
            watch.look()
            if watch.hung:
                watch.end()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return process.wait()
    finally:
        os.close(ends)
    watch.look()
    return process.wait()


def _prepare_child() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A batch system sends it to all processes of a job. Only ranks know what to do with it, once they train.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
