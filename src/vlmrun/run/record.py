"""`run.json`: what a run was asked to do, on what, and what came of it; written before its first stage, then kept up.

A run is a composed configuration under a name. Giving it again, to resume it or to see that it is finished, adds a
launch to the same record; another configuration is another run with a number of its own (`run/numbers.py`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmrun import artifact, logs
from vlmrun.outcome import Outcome

log = logs.get(__name__)

NAME = "run.json"
PATCH = "code.patch"  # what the user's folder had that its last commit has not
State = Literal["running", "finished", "failed", "stopped", "interrupted"]

_SECONDS = 10.0  # for git and nvidia-smi
_MOST_PATCH = 1 << 20  # bytes


class Stage(BaseModel):
    """A finished stage of a run."""

    model_config = ConfigDict(extra="ignore")

    key: str
    kind: str
    reused: bool
    numbers: dict[str, Any]


class Launch(BaseModel):
    """One time that a run was started.

    Attributes:
        error: what ended it, as it was printed.
        code: commit of the folder it was started in, and whether files differed from it; None outside of git.
    """

    model_config = ConfigDict(extra="ignore")

    started: str  # ISO 8601, UTC
    ended: str | None = None
    state: State = "running"
    error: str | None = None
    command: str
    folder: str
    host: str
    process: tuple[int, float]  # its number and when the system started it
    gpus: list[str]
    versions: dict[str, str]
    code: dict[str, Any] | None


class Record(BaseModel):
    """The content of `run.json`. `stages` are those of the last launch."""

    model_config = ConfigDict(extra="ignore")

    name: str
    number: int | None
    overrides: list[str]
    config: dict[str, Any]
    launches: list[Launch] = Field(default_factory=list)
    stages: dict[str, Stage] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    note: str = ""
    archived: bool = False

    @property
    def last(self) -> Launch:
        """The newest launch."""
        return self.launches[-1]

    @property
    def state(self) -> State:
        """The last launch's; one that says it is running and whose process is gone was interrupted."""
        return "interrupted" if self.last.state == "running" and not _lives(self.last) else self.last.state


def read(folder: Path) -> Record | None:
    """The record in a run's folder; None where there is none that can be read."""
    try:
        return Record.model_validate_json((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError, ValidationError):
        return None


def write(folder: Path, record: Record) -> None:
    """Replaces the record of a folder at once."""
    artifact.write_text(folder / NAME, record.model_dump_json(indent=1) + "\n")


@contextlib.contextmanager
def kept(
    folder: Path, name: str, config: dict[str, Any], overrides: Sequence[str], outcomes: Callable[[], Sequence[Outcome]]
) -> Iterator[None]:
    """Keeps a run's record while its stages are worked on, however that ends.

    Args:
        outcomes: the stages that are finished by now.
    """
    before = read(folder)
    number = int(folder.name) if folder.name.isdecimal() else None
    record = before or Record(name=name, number=number, overrides=list(overrides), config=config)
    record.launches.append(_launch(folder))
    write(folder, record)
    state: State = "finished"
    error: str | None = None
    try:
        yield
    except KeyboardInterrupt as stop:
        state, error = "stopped", str(stop) or None
        raise
    except BaseException as cause:
        state, error = "failed", str(cause) or type(cause).__name__
        raise
    finally:
        record = read(folder) or record  # tags and notes may have been given meanwhile
        record.stages = {
            item.name: Stage(
                key=item.artifact.key, kind=item.artifact.kind, reused=item.reused, numbers=item.artifact.summary
            )
            for item in outcomes()
        }
        record.last.state, record.last.error, record.last.ended = state, error, artifact.now()
        write(folder, record)


def all_of(root: Path) -> Iterator[tuple[Path, Record]]:
    """Every run below an output root, in no order: those of a name, and points of sweeps."""
    for pattern in (f"runs/*/*/{NAME}", f"runs/*/{NAME}", f"sweeps/*/*/{NAME}"):
        for path in root.glob(pattern):
            if not path.parent.is_symlink() and not path.is_symlink() and (found := read(path.parent)) is not None:
                yield path.parent, found


def _launch(folder: Path) -> Launch:
    here = Path.cwd()
    process = psutil.Process()
    return Launch(
        started=artifact.now(),
        command=shlex.join(["vlmrun", *sys.argv[1:]]),
        folder=str(here),
        host=f"{socket.gethostname()}, {platform.platform()}",
        process=(process.pid, process.create_time()),
        gpus=_gpus(),
        versions=artifact.environment(),
        code=_code(here, folder),
    )


def _lives(launch: Launch) -> bool:
    """Whether the process is still there; of another machine nobody can say, so it is taken at its word."""
    if launch.host.partition(",")[0] != socket.gethostname():
        return True
    number, began = launch.process
    try:
        return bool(abs(psutil.Process(number).create_time() - began) < 1.0)
    except psutil.Error:
        return False


def _gpus() -> list[str]:
    return (_said("nvidia-smi", "-L") or "").splitlines() if shutil.which("nvidia-smi") else []


def _code(here: Path, folder: Path) -> dict[str, Any] | None:
    """Commit of a folder under git; what differs from it is written beside the record."""
    commit = _said("git", "-C", str(here), "rev-parse", "HEAD")
    if commit is None:
        return None
    patch = _said("git", "-C", str(here), "diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    if patch:
        if len(patch.encode()) <= _MOST_PATCH:
            artifact.write_text(folder / PATCH, patch)
        else:
            log.info("changes of more than 1 MB that are not committed are not kept with the run")
    return {"commit": commit.strip(), "dirty": bool(patch)}


def _said(*command: str) -> str | None:
    """What a program prints; None when it is not there, fails or takes long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
