"""The entry of every rank: reads `job.json`, executes its stage, and writes `artifact.json` last."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from vlmrun import artifact, back, heartbeat, kinds, logs
from vlmrun.artifact import Artifact, Parent
from vlmrun.config.job import FAILURE_FILE, StageJob
from vlmrun.errors import DataError, Problem, VlmrunError
from vlmrun.outcome import Result

log = logs.get(__name__)

_STOPPED = 130
_SHARED = "/dev/shm"


def main(argv: list[str] | None = None) -> int:
    """Runs one rank; returns its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        return _run(StageJob.read(Path((argv or sys.argv[1:])[0])))
    except KeyboardInterrupt:
        return _STOPPED
    finally:
        heartbeat.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(job: StageJob) -> int:
    rank = int(os.environ.get("RANK", "0"))
    started = time.monotonic()
    logging.raiseExceptions = False  # a full disk is reported once, not with a traceback for every line of the log
    try:
        logs.setup(rank=rank, folder=job.path / "logs")
        if kinds.of(job.stage).trains:
            _be_watched(job.path / "logs", rank)
        stage = back.stage(job)
        # Only now: while modules load there is nothing to save, and SIGTERM ends us as it is.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        result = stage.execute(job)
        if rank == 0 and result is not None:
            finish(job, result, time.monotonic() - started)
    except VlmrunError as error:
        return _leave(job, error)
    except OSError as error:
        # A full disk or a read-only folder: the user's matter, not a bug of ours.
        return _leave(job, _of_disk(job, error))
    except Exception as error:  # noqa: BLE001 - the last line of defence: keep the traceback, show a sentence
        return _leave(job, _unforeseen(job, rank, error))
    return 0


def _of_disk(job: StageJob, error: OSError) -> VlmrunError:
    """An error of the system about a file, or about shared memory, which names no file."""
    what = str(error.strerror or error)
    if error.filename is None and not os.access(_SHARED, os.W_OK):
        fix = f"mount it writable (docker run --shm-size=8g), or stage.{job.name}.workers=0"
        return DataError(f"{what}: loader processes hand over samples in shared memory", _SHARED, fix)
    return DataError(what, str(error.filename or job.path), "free space or rights")


def _be_watched(folder: Path, rank: int) -> None:
    """Heartbeats from here on; SIGUSR1 waits for the loop; on SIGUSR2 the stacks of all threads are written down."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR2, (folder / f"stack-{rank}.txt").open("w"))
    heartbeat.start(folder, rank)
    heartbeat.beat("start")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _unforeseen(job: StageJob, rank: int, error: Exception) -> VlmrunError:
    """Keeps the traceback in a file, or shows it where that cannot be written."""
    text = "".join(traceback.format_exception(error))
    path = job.path / "logs" / f"traceback-{rank}.txt"
    log.debug("%s", text)
    try:
        path.write_text(text, "utf-8")
    except OSError:
        print(text, file=sys.stderr)  # noqa: T201
    what = f"{type(error).__name__}: {error}"
    return VlmrunError(what, str(path), "this looks like a bug of vlmrun: please report that file")


def finish(job: StageJob, result: Result, seconds: float) -> None:
    """Digests the result and declares the stage complete."""
    made = Artifact(
        name=job.name,
        kind=job.stage.kind,
        key=job.key,
        run=job.run,
        created=artifact.now(),
        parents=[_parent(folder) for folder in [*job.parents.values(), *job.prepared]],
        summary={**result.summary, "seconds": round(seconds, 2)},
        environment=artifact.environment(),
        files=artifact.describe_files(job.path, result.roots),
    )
    artifact.write_text(job.path / artifact.NAME, made.model_dump_json(indent=1) + "\n")


def _parent(folder: str) -> Parent:
    found = artifact.parent(Path(folder))
    assert found is not None, "a job is written only when its parents are finished"
    return found


def _placed(problem: Problem, stage: str) -> Problem:
    """A problem of a stage with the stage's name, which the code that found it does not know."""
    texts = (text.replace("stage.*.", f"stage.{stage}.") for text in (problem.what, problem.where, problem.fix))
    return Problem(*texts)


def _leave(job: StageJob, error: VlmrunError) -> int:
    """Hands the error to the parent, which alone shows it. The first rank that fails is the one to hear.

    It may be slower to say so than those that lost it.
    """
    error.problems = [_placed(problem, job.name) for problem in error.problems]
    path = job.path / FAILURE_FILE
    try:
        if not path.exists() or json.loads(path.read_text("utf-8")).get("reason") == "lost_rank":
            artifact.write_json(path, error.to_dict())
    except OSError:
        print(error, file=sys.stderr)  # noqa: T201 - the disk that is full is the one the error would be left on
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
