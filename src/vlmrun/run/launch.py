"""From a job to running ranks, and what became of them. What is started is a pure function of the job (`argv`)."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from types import FrameType

from vlmrun import artifact
from vlmrun.config.job import FAILURE_FILE, StageJob
from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError, VlmrunError, error_from_dict
from vlmrun.run import argv
from vlmrun.run.crew import NOBODY, Crew
from vlmrun.run.line import Guard
from vlmrun.run.nodes import Node

_PR_SET_PDEATHSIG = 1
_GOES_ON = "the same command goes on from there"
_BY_CODE = {kind.exit_code: kind for kind in (ConfigError, DataError, CheckpointError, LaunchError)}


def run(job: StageJob, lock_fd: int, crew: Crew = NOBODY) -> None:
    """Writes nothing itself: starts the ranks of `job.json`, forwards signals, and waits.

    Args:
        crew: the other nodes, which start theirs when we do.

    Raises:
        VlmrunError: the worker's own error, or a LaunchError when it died without saying why.
        KeyboardInterrupt: when the person stopped it; the worker has saved by then.
    """
    failure = job.path / FAILURE_FILE
    failure.unlink(missing_ok=True)
    port = _free_port()
    if job.stage.kind == "train":
        crew.start(job.name, 0, port)
    code, stopped = once(job, Start(port, 0, crew.node), crew.guard, lock_fd)
    error = error_from_dict(json.loads(failure.read_text("utf-8"))) if failure.is_file() else None
    if stopped:
        raise KeyboardInterrupt(_farewell(job, error))
    if error or code != 0:
        if error is None or isinstance(error, LaunchError):
            crew.require()
        raise error or _unexplained(job, code)


@dataclass(frozen=True)
class Start:
    """One start of a job's ranks: where they meet, how often they were started before, and on which node these are."""

    port: int
    attempt: int
    node: Node


def once(job: StageJob, start: Start, guard: Guard, *held: int) -> tuple[int, bool]:
    """Starts this node's ranks and waits for them.

    Args:
        guard: may end them.
        held: file descriptors that they inherit.

    Returns:
        The exit code, and whether we were asked to stop.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    process = subprocess.Popen(
        argv.command(job, start.port, visible, start.attempt, start.node),
        env=argv.environment(job, os.environ, start.port, start.node),
        start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on once
        preexec_fn=_die_with_parent,
        pass_fds=held,
        stdout=2,  # launchers chatter on stdout, which belongs to results one may pipe
    )
    with guard.watching(process):
        return _wait(process)


def _farewell(job: StageJob, error: VlmrunError | None) -> str:
    """What to say to a person who stopped us."""
    if artifact.read(job.path) is not None:
        return f"stage {job.name!r} had finished when it was stopped; {_GOES_ON}"
    if isinstance(error, LaunchError) and error.problems[0].what.startswith("stopped"):
        return error.problems[0].what
    # Bugs and lost ranks are what a rank reports whose neighbour left first, not what the person did.
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
        "the same command goes on from the newest checkpoint",
    )


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Exit code, and whether we were asked to stop. The first signal is passed on, a second one kills.

    It is passed on as SIGTERM, which ends a Python that still imports without a traceback, as SIGINT does not.
    """
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            if len(asked) == 1:
                process.send_signal(signal.SIGTERM)
            else:
                os.killpg(process.pid, signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait(), bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
