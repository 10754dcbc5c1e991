"""Stage folders below the output root: found by key, locked while a process works in them."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlmrun import artifact, logs
from vlmrun.artifact import Artifact
from vlmrun.config import hub, paths
from vlmrun.errors import CheckpointError, suggest
from vlmrun.names import LATEST, MODEL, RUN_CONFIG, WEIGHTS

log = logs.get(__name__)


def stages_dir(root: Path) -> Path:
    """Where all stage folders of an output root are."""
    return root / "stages"


def folder(root: Path, name: str, key: str) -> Path:
    """The folder of one stage."""
    return stages_dir(root) / f"{name}-{key}"


def finished(path: Path) -> Artifact | None:
    """The stage's artifact, verified, or None when the stage is not finished."""
    found = artifact.read(path)
    if found is not None:
        artifact.verify(path, found)
    return found


def artifacts(root: Path) -> list[tuple[Path, Artifact]]:
    """Every finished stage below an output root, oldest first; one that cannot be read is reported and left out."""
    found = []
    for path in sorted(stages_dir(root).glob("*/" + artifact.NAME)):
        try:
            item = artifact.read(path.parent)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        if item is not None:
            found.append((path.parent, item))
    return sorted(found, key=lambda pair: pair[1].created)


def find(root: Path, reference: str, *, training: bool = False, asked: bool = False) -> Path:
    """The artifact folder that a reference means: a path, `name-key`, or the newest of a stage name; or a foreign
    model, which may be a hub id whose files are in the local cache.

    Args:
        training: also a training checkpoint, and of a stage that has not finished the newest one.
        asked: the user says that it is a training checkpoint (`require_trusted`).

    Raises:
        CheckpointError: with the nearest names when there is none; when it is an artifact whose files were changed, or
            a training checkpoint from elsewhere that was not asked for.
    """
    found = _find(root, reference, training=training)
    require_trusted(root, found, asked=asked)
    require_unchanged(found)
    return found


def find_run(root: Path, reference: str) -> Path | None:
    """The folder of a run by `NAME` (its newest), `NAME/NUMBER` or folder; None: there is none."""
    base = root / "runs" / reference
    named = () if ".." in Path(reference).parts else (base / LATEST, base)
    places = (*named, Path(reference).expanduser())
    return next((place.resolve() for place in places if (place / RUN_CONFIG).is_file()), None)


def require_trusted(root: Path, folder: Path, *, asked: bool = False) -> None:
    """Lets a training checkpoint pass when it is below the output root, or when the user says what it is.

    A checkpoint is read by the trainer, as its stage's job.json says, and its manifest is its author's word. What a
    folder from elsewhere says of itself is no reason to do so.

    Raises:
        CheckpointError: naming what the user must say.
    """
    if is_checkpoint(folder) and not asked and not is_below(root, folder):
        raise CheckpointError(
            "this says that it is a training checkpoint, and it is not below the output root",
            str(folder),
            "if you trust its author: --from training; if it is yours: --output with its root",
        )


def is_below(root: Path, folder: Path) -> bool:
    """Whether a folder is one of the stages of an output root."""
    return folder.resolve().is_relative_to(stages_dir(root).resolve())


def require_unchanged(place: Path) -> None:
    """Compares the files of an artifact, given as its folder or as one within it, with its digests.

    A file whose size and time are as recorded, or as they were when it was last read for this, is not read again.

    Raises:
        CheckpointError: naming every file that is missing, new or different.
    """
    for folder in (place, place.parent):
        found = artifact.read(folder)
        if found is not None and (folder == place or place.name in _ROOTS):
            artifact.verify(folder, found)
            return


def _find(root: Path, reference: str, *, training: bool) -> Path:
    path = Path(reference).expanduser()
    if (path / artifact.NAME).is_file() or is_model(path):
        return path
    known = artifacts(root)
    matches = [where for where, item in known if reference in (item.name, f"{item.name}-{item.key}", item.key)]
    if matches:
        if len(matches) > 1:
            log.warning("%s: %s, the newest of %d stages of this name", reference, matches[-1].name, len(matches))
        return matches[-1]
    found = newest_checkpoint(root, reference) if training else None
    if found is not None:
        return found
    names = {item.name for _, item in known}
    if path.is_dir():
        raise CheckpointError(f"{reference!r} is not a finished artifact", str(path), f"it has no {artifact.NAME}")
    if hub.is_model_id(reference):
        return paths.locate(reference)
    raise CheckpointError(
        f"no artifact {reference!r}", str(stages_dir(root)), suggest(reference, names, noun="artifacts")
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a complete checkpoint of a training stage."""
    return (path / _MANIFEST).is_file() and (path.parent.parent / _JOB).is_file()


def came_as(path: Path) -> str | None:
    """The format that a folder must be asked for by: of a training checkpoint, which `require_trusted` let pass."""
    return "training" if is_checkpoint(path) else None


def newest_checkpoint(root: Path, reference: str) -> Path | None:
    """The last checkpoint of a stage that is training or was interrupted; None when there is no such stage."""
    path = Path(reference).expanduser()
    if is_checkpoint(path):
        return path
    stages = [path] if path.is_dir() else sorted(stages_dir(root).glob(f"{glob.escape(reference)}*"))
    stages = [stage for stage in stages if reference in (str(path), stage.name, stage.name.rpartition("-")[0])]
    steps = [step for stage in stages for step in (stage / "checkpoints").glob("step-*") if is_checkpoint(step)]
    return max(steps, key=lambda step: (step / _MANIFEST).stat().st_mtime_ns, default=None)


@contextlib.contextmanager
def snapshot(checkpoint: Path) -> Iterator[Path]:
    """A training checkpoint under another name, as hard links: training may remove its own meanwhile."""
    stage = checkpoint.parent.parent
    with tempfile.TemporaryDirectory(dir=stage, prefix=".served-") as place:
        copy = Path(place) / "checkpoints" / checkpoint.name
        shutil.copytree(checkpoint, copy, copy_function=os.link)
        os.link(stage / _JOB, Path(place) / _JOB)
        yield copy


def is_model(path: Path) -> bool:
    """Whether a folder or file that is no artifact looks like a model in some format; its content is not read."""
    if path.is_file():
        return path.suffix == ".gguf"
    return any((path / name).is_file() for name in _MODEL_FILES)


_ROOTS = (WEIGHTS, "model")  # where in an artifact a model may be
_MANIFEST = "MANIFEST.json"  # as `train.checkpoint.commit` writes it, last
_JOB = "job.json"
_MODEL_FILES = ("config.json", MODEL, "adapter_config.json", "latest_checkpointed_iteration.txt")
