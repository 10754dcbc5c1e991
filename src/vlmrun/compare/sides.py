"""What a reference on the command line names, with the files that say what was done there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlmrun import artifact, store
from vlmrun.artifact import Artifact
from vlmrun.config.job import JOB_FILE
from vlmrun.errors import CheckpointError, suggest
from vlmrun.names import RUN_CONFIG

_STAGES = "stages"
# Of a stage's job: places on this machine, and names of what `parents` compares by key.
_PLACES = ("key", "folder", "run", "parents", "prepared", "composed")


@dataclass(frozen=True)
class Made:
    """A finished stage.

    Attributes:
        job: its `job.json`; None of an artifact that has none, such as one made by `vlmrun merge`.
    """

    folder: Path
    artifact: Artifact
    job: dict[str, Any] | None


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        values: the composed config of a run, or what a stage was asked to do.
        stages: finished stages by name; one of a stage.
    """

    reference: str
    kind: str  # "run" or "stage"
    folder: Path
    values: dict[str, Any]
    stages: dict[str, Made]


def find(root: Path, reference: str) -> Side:
    """The run or stage that a reference names: a folder, a run's `NAME` (its newest) or `NAME/NUMBER`, a stage's name,
    key or `name-key`.

    Raises:
        CheckpointError: with the nearest names when there is none, and when a stage's name is a run's name too.
    """
    run = store.find_run(root, reference)
    try:
        folder = store.find(root, reference)
    except CheckpointError:
        if run is not None:
            return _run(reference, run)
        raise _nothing(root, reference) from None
    if run is not None:
        fix = f"give {run} or {folder}"
        raise CheckpointError(f"{reference!r} names a run and a stage", str(root), fix)
    return _stage(reference, folder)


def _nothing(root: Path, reference: str) -> CheckpointError:
    runs = {place.parent.name for place in (root / "runs").glob(f"*/{RUN_CONFIG}")}
    stages = {item.name for _, item in store.artifacts(root)}
    return CheckpointError(
        f"no run and no finished stage {reference!r}",
        str(root),
        suggest(reference, runs | stages, noun="runs and stages"),
    )


def _run(reference: str, folder: Path) -> Side:
    folder = Path(os.path.relpath(folder))  # shown as people read it
    try:
        values = yaml.safe_load((folder / RUN_CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{RUN_CONFIG} cannot be read: {error}", str(folder), "run it again to write it"
        ) from error
    found = (_made(place.resolve()) for place in sorted((folder / _STAGES).glob("*")))
    stages = {made.artifact.name: made for made in found if made is not None}
    return Side(reference, "run", folder, values if isinstance(values, dict) else {}, stages)


def _stage(reference: str, folder: Path) -> Side:
    made = _made(folder)
    if made is None:
        fix = "vlmrun convert reads it; vlmrun diff compares what vlmrun made"
        raise CheckpointError(f"{reference!r} is a model that vlmrun did not make", str(folder), fix)
    values = {name: value for name, value in (made.job or {}).items() if name not in _PLACES}
    values["parents"] = {parent.name: parent.key for parent in made.artifact.parents}
    return Side(reference, "stage", folder, values, {made.artifact.name: made})


def _made(folder: Path) -> Made | None:
    found = artifact.read(folder)
    if found is None:
        return None
    try:
        job = json.loads((folder / JOB_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        job = None
    return Made(folder, found, job if isinstance(job, dict) else None)
