"""`run.json`: what a run was asked to do, on what, and what came of it; written before its first stage, then kept up.

A run is a composed configuration under a name. Giving it again, to resume it or to see that it is finished, adds a
launch to the same record; another configuration is another run with a number of its own (`run/numbers.py`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmrun import artifact, locks, logs
from vlmrun.config.schema import RunConfig
from vlmrun.errors import CheckpointError, VlmrunError
from vlmrun.outcome import Outcome
from vlmrun.run import processes, surroundings

log = logs.get(__name__)

NAME = "run.json"
State = Literal["running", "finished", "failed", "stopped", "interrupted"]


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
        code: commit of the folder it was started in, the files that differed from it as `git status` names them, and
            the file with their differences; None outside of git.
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
    """The content of `run.json`. `stages` are those that any launch has finished."""

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


def _write(folder: Path, record: Record) -> None:
    artifact.write_text(folder / NAME, record.model_dump_json(indent=1) + "\n")


def change(folder: Path, how: Callable[[Record], None]) -> Record:
    """Changes a record that other processes may be changing too.

    Raises:
        CheckpointError: when it is not there any more.
    """
    with locks.alone(folder):
        record = read(folder)
        if record is None:
            raise CheckpointError("the run's record is gone or damaged", str(folder / NAME), "start the run again")
        how(record)
        _write(folder, record)
    return record


@contextlib.contextmanager
def kept(
    folder: Path,
    config: RunConfig,
    command: tuple[Sequence[str], Sequence[Path]],
    outcomes: Callable[[], Sequence[Outcome]],
) -> Iterator[None]:
    """Keeps a run's record while its stages are worked on, however that ends.

    A disk that cannot be written costs the record, not the run: that is logged.

    Args:
        command: the overrides, and the folders of `--config-dir`.
        outcomes: the stages that are finished by now.
    """
    ours: list[Launch] = []
    with _logged():
        ours.append(_begin(folder, config, command))
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
        with _logged():
            change(folder, lambda record: _end(record, ours, state, error, outcomes()))


def _begin(folder: Path, config: RunConfig, command: tuple[Sequence[str], Sequence[Path]]) -> Launch:
    with locks.alone(folder):
        record = read(folder)
        if record is None:
            number = int(folder.name) if folder.name.isdecimal() else None
            values = config.model_dump(mode="json", by_alias=True)
            record = Record(name=config.name, number=number, overrides=list(command[0]), config=values)
        launch = _launch(folder, len(record.launches) + 1, command)
        record.launches.append(launch)
        _write(folder, record)
    return launch


def _end(record: Record, ours: list[Launch], state: State, error: str | None, outcomes: Sequence[Outcome]) -> None:
    """Completes the launch that this process began; others may have begun since."""
    for item in outcomes:
        record.stages[item.name] = Stage(
            key=item.artifact.key, kind=item.artifact.kind, reused=item.reused, numbers=item.artifact.summary
        )
    for launch in record.launches:
        if ours and (launch.process, launch.started) == (ours[0].process, ours[0].started):
            launch.state, launch.error, launch.ended = state, error, artifact.now()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (OSError, VlmrunError) as error:
        log.warning("the run's record is not kept: %s", error)


def folders(root: Path) -> Iterator[Path]:
    """The folder of every run below an output root, in no order: those of a name, and points of sweeps."""
    for pattern in (f"runs/*/*/{NAME}", f"runs/*/{NAME}", f"sweeps/*/*/{NAME}"):
        for path in root.glob(pattern):
            if not path.parent.is_symlink() and not path.is_symlink():
                yield path.parent


def all_of(root: Path) -> Iterator[tuple[Path, Record]]:
    """Every run that has a record which can be read."""
    for folder in folders(root):
        if (found := read(folder)) is not None:
            yield folder, found


def _launch(folder: Path, number: int, command: tuple[Sequence[str], Sequence[Path]]) -> Launch:
    here = Path.cwd()
    overrides, config_dirs = command
    return Launch(
        started=artifact.now(),
        command=shlex.join(["vlmrun", *(f"--config-dir={place}" for place in config_dirs), *overrides]),
        folder=str(here),
        host=f"{socket.gethostname()}, {platform.platform()}",
        process=(os.getpid(), processes.began(os.getpid()) or 0.0),
        gpus=surroundings.gpus(),
        versions=artifact.environment(),
        code=surroundings.code(here, folder / f"code-{number}.patch"),
    )


def _lives(launch: Launch) -> bool:
    """Whether the process is still there; of another machine that cannot be known, so its state stands."""
    if launch.host.partition(",")[0] != socket.gethostname():
        return True
    number, began = launch.process
    now = processes.began(number)
    return now is not None and abs(now - began) < 1.0
