"""Stages that no run refers to, neither by itself nor through a stage that was made from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmrun import artifact, locks, store
from vlmrun.errors import CheckpointError
from vlmrun.run import record


@dataclass(frozen=True)
class Unused:
    """A stage folder and its size; a file that other folders link to counts as well."""

    folder: Path
    n_bytes: int
    finished: bool


def unused(root: Path) -> list[Unused]:
    """Stage folders that can go: neither named by a run or a point of a sweep, nor a parent of one that is."""
    stages = store.stages_dir(root)
    folders = {path.resolve() for path in stages.iterdir() if path.is_dir()} if stages.is_dir() else set()
    kept: set[Path] = set()
    todo = list(_named(root))
    while todo:
        folder = todo.pop().resolve()
        if folder not in kept:
            kept.add(folder)
            todo += _parents(folder)
    found = sorted(folders - kept)
    return [Unused(path, _size(path), (path / artifact.NAME).is_file()) for path in found]


def remove(one: Unused) -> None:
    """Removes a stage folder.

    Raises:
        LaunchError: when a process works in it.
    """
    with locks.lock(one.folder, wait=False, say=lambda text: None):
        # Last first: what is left of an interrupted removal must not look finished.
        (one.folder / artifact.NAME).unlink(missing_ok=True)
        shutil.rmtree(one.folder)


def _named(root: Path) -> Iterator[Path]:
    """Folders that runs and sweeps link to or name by key; of unfinished stages too."""
    for folder, found in record.all_of(root):
        yield from (store.folder(root, name, stage.key) for name, stage in found.stages.items())
        yield from _begun(root, folder)
    for pattern in ("runs/*/stages/*", "runs/*/*/stages/*", "sweeps/*/*/stages/*"):
        yield from root.glob(pattern)


def _begun(root: Path, folder: Path) -> Iterator[Path]:
    """Stages of a run that are not finished: their job names the run they were begun by."""
    found = record.read(folder)
    for stage in (found.config.get("stage") or {}) if found is not None and found.state != "finished" else ():
        yield from (path for path in store.stages_dir(root).glob(f"{stage}-*") if not (path / artifact.NAME).is_file())


def _parents(folder: Path) -> list[Path]:
    try:
        made = artifact.read(folder)
    except CheckpointError:
        return []
    return [Path(parent.path) for parent in made.parents] if made is not None else []


def _size(folder: Path) -> int:
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(folder) for name in names)
