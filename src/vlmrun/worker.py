"""The entry of every rank: reads `job.json`, executes its stage, and writes `artifact.json` last."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlmrun import artifact, logs
from vlmrun.artifact import Artifact, Parent
from vlmrun.config.job import FAILURE_FILE, StageJob
from vlmrun.errors import DataError, VlmrunError
from vlmrun.stages import KINDS, Result

log = logs.get(__name__)

_LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "safetensors", "tokenizers", "pillow", "numpy")


def main(argv: list[str] | None = None) -> int:
    """Runs one rank; returns its exit code."""
    job = StageJob.read(Path((argv or sys.argv[1:])[0]))
    rank = int(os.environ.get("RANK", "0"))
    logs.setup(rank=rank, folder=job.path / "logs")
    started = time.monotonic()
    try:
        result = importlib.import_module(KINDS[job.stage.kind]).execute(job)
        if rank == 0 and result is not None:
            finish(job, result, time.monotonic() - started)
    except VlmrunError as error:
        _leave(job, error)
        return error.exit_code
    except OSError as error:
        # A full disk or a read-only folder: the user's matter, not a bug of ours.
        return _leave(
            job, DataError(f"{error.strerror or error}", str(error.filename or job.path), "free space or rights")
        )
    except Exception as error:  # noqa: BLE001 - the last line of defence: keep the traceback, show a sentence
        log.debug("%s", traceback.format_exc())
        (job.path / "logs" / f"traceback-{rank}.txt").write_text(traceback.format_exc(), "utf-8")
        what = f"{type(error).__name__}: {error}"
        where = str(job.path / "logs" / f"traceback-{rank}.txt")
        return _leave(job, VlmrunError(what, where, "this looks like a bug of vlmrun: please report that file"))
    return 0


def finish(job: StageJob, result: Result, seconds: float) -> None:
    """Digests the result and declares the stage complete."""
    made = Artifact(
        name=job.name,
        kind=job.stage.kind,
        key=job.key,
        run=job.run,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        parents=[_parent(folder) for folder in [*job.parents.values(), *job.prepared]],
        summary={**result.summary, "seconds": round(seconds, 2)},
        environment=_environment(),
        files=artifact.describe_files(job.path, result.roots),
    )
    artifact.write_text(job.path / artifact.NAME, made.model_dump_json(indent=1) + "\n")


def _parent(folder: str) -> Parent:
    found = artifact.read(Path(folder))
    assert found is not None, "a job is written only when its parents are finished"
    return Parent(name=found.name, key=found.key, path=folder)


def _environment() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def _leave(job: StageJob, error: VlmrunError) -> int:
    """Hands the error to the parent, which alone shows it. The first rank that fails is the one to hear."""
    path = job.path / FAILURE_FILE
    if not path.exists():
        artifact.write_json(path, error.to_dict())
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
