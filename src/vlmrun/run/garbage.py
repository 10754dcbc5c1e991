"""Stages that no run refers to, neither by itself nor through a stage that was made from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlmrun import artifact, locks, store
from vlmrun.config.job import JOB_FILE
from vlmrun.errors import CheckpointError
from vlmrun.names import RUN_CONFIG
from vlmrun.run import record

_CONFIGS = (f"runs/*/{RUN_CONFIG}", f"runs/*/*/{RUN_CONFIG}", f"sweeps/*/*/{RUN_CONFIG}")


@dataclass(frozen=True)
class Unused:
    """A stage folder and its size; a file that other folders link to counts as well."""

    folder: Path
    n_bytes: int
    finished: bool


def unused(root: Path, *, unfinished: bool = False) -> list[Unused]:
    """Stage folders that can go: neither named by a run or a point of a sweep, nor needed by one that is.

    Args:
        unfinished: count stages that did not finish as well; otherwise they are kept, with what they start from.
    """
    folders = _stages(root)
    kept: set[Path] = set()
    todo = [*_named(root), *(() if unfinished else (path for path in folders if not _is_finished(path)))]
    while todo:
        folder = Path(os.path.realpath(todo.pop()))
        if folder not in kept:
            kept.add(folder)
            todo += _needed(root, folder)
    free = [path for path in folders if Path(os.path.realpath(path)) not in kept]
    return [Unused(path, _size(path), _is_finished(path)) for path in free]


def remove(root: Path, one: Unused, *, unfinished: bool) -> bool:
    """Removes a stage folder, unless a run has come to need it since it was listed.

    Raises:
        LaunchError: when a process works in it.
    """
    with locks.lock(one.folder, wait=False, say=lambda text: None):
        if one.folder not in {other.folder for other in unused(root, unfinished=unfinished)}:
            return False
        # First: what is left of an interrupted removal must not look finished.
        (one.folder / artifact.NAME).unlink(missing_ok=True)
        shutil.rmtree(one.folder)
    return True


def _stages(root: Path) -> list[Path]:
    """Stage folders of our own making; links lead to those of others."""
    stages = store.stages_dir(root)
    found = sorted(path for path in stages.iterdir() if not path.is_symlink()) if stages.is_dir() else []
    return [path for path in found if (path / artifact.NAME).is_file() or (path / JOB_FILE).is_file()]


def _is_finished(folder: Path) -> bool:
    return (folder / artifact.NAME).is_file()


def _named(root: Path) -> Iterator[Path]:
    """Folders that runs and sweeps link to, name by key, or give as a path."""
    for _, found in record.all_of(root):
        yield from (store.folder(root, name, stage.key) for name, stage in found.stages.items())
        yield from _paths(found.config)
    for pattern in _CONFIGS:
        for file in root.glob(pattern):
            if not (file.parent / record.NAME).is_file():  # made by a version that kept no record
                yield from _paths(_config(file))
            yield from (file.parent / "stages").glob("*")


def _config(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _paths(value: Any) -> Iterator[Path]:
    """Strings of a configuration that name a folder or a file, with the folders they are in."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, str) and os.sep in value:
        place = Path(os.path.realpath(value))
        yield place
        yield from place.parents


def _needed(root: Path, folder: Path) -> Iterator[Path]:
    """What a stage was made from, or will be: by path, and by key where `root` has moved."""
    try:
        made = artifact.read(folder)
    except CheckpointError:
        made = None
    if made is not None:
        for parent in made.parents:
            yield Path(parent.path)
            yield store.folder(root, parent.name, parent.key)
    try:
        job = json.loads((folder / JOB_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(job, dict):
        yield from _paths({name: job.get(name) for name in ("parents", "prepared", "data", "model")})


def _size(folder: Path) -> int:
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(folder) for name in names)
