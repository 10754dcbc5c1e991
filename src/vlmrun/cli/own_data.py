"""Looks at a user's annotation file: is it LLaVA JSON, of captions or conversations, and where are its images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmrun.data.formats import llava
from vlmrun.data.sample import Rejected, Sample
from vlmrun.errors import DataError

_ENDINGS = (".json", ".jsonl")
_NOT_LOOKED_AT = {"conf", "outputs", "node_modules", "wandb"}
_FOLDERS = 200  # folders that are tried for images


@dataclass(frozen=True)
class Own:
    """An annotation file of the user's.

    Args:
        name: of its data entry.
        annotations, images: as they are written into the entry: relative to the project where they are inside of it.
        captions: every record has one image, one question and one answer, as `template: plain` takes it.
        n_records: that can be used.
    """

    name: str
    annotations: str
    images: str
    captions: bool
    n_records: int
    n_rejected: int


def candidates(folder: Path) -> list[Path]:
    """LLaVA files in a project's folder and the folders in it, without looking further."""
    if not folder.is_dir():
        return []
    places = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir() and not _is_skipped(path))]
    files = [file for place in places for file in sorted(place.iterdir()) if file.suffix in _ENDINGS]
    return [file for file in files if file.is_file() and _first(file) is not None]


def look_all(files: Sequence[Path], images: Path | None, project: Path) -> list[Own]:
    """`look` at each file; entries whose files have equal names are numbered: my_train, my_train_2.

    Raises:
        DataError: as `look`; also for a file that is given twice.
    """
    found: list[Own] = []
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError("this file is given twice", str(file), "name each file once: --data FILE ...")
        seen.add(file.resolve())
        own = look(file, images, project)
        taken = {each.name for each in found}
        names = (own.name, *(f"{own.name}_{number}" for number in range(2, len(files) + 2)))
        found.append(replace(own, name=next(name for name in names if name not in taken)))
    return found


def look(file: Path, images: Path | None, project: Path) -> Own:
    """What a file holds.

    Args:
        images: the folder of its images; None: found beside the file.

    Raises:
        DataError: when it holds no record that can be used, or its images are not found.
    """
    if not file.is_file():
        raise DataError("no such file", str(file), "give an annotation file: --data FILE.json --images FOLDER")
    first: Sample | None = None
    n_records = n_rejected = 0
    captions = True
    for record in llava.read(file):
        if isinstance(record, Rejected):
            n_rejected += 1
            continue
        n_records += 1
        captions = captions and len(record.images) == 1 and len(record.turns) == 2
        first = record if first is None or not first.images else first
    if first is None:
        fix = "vlmrun data lint says what is wrong with each; docs/guides/own-data.md shows the format"
        raise DataError(f"none of its {n_rejected} records is one of LLaVA JSON", str(file), fix)
    root = images if images is not None else _find_images(file, first, project)
    if not root.is_dir():
        raise DataError("no such folder", str(root), "give the folder that image names start from: --images FOLDER")
    word = re.sub(r"\W+", "_", file.stem.lower()).strip("_") or "data"
    return Own(f"my_{word}", _written(file, project), _written(root, project), captions, n_records, n_rejected)


def _first(file: Path) -> Sample | None:
    """The first record of a file that is LLaVA's; None: it is another kind of file."""
    try:
        record = next(iter(llava.read(file)), None)
    except DataError:
        return None
    return record if isinstance(record, Sample) else None


def _find_images(file: Path, record: Sample, project: Path) -> Path:
    """The folder that a record's image is found from: the file's own, or one beside or below it."""
    if not record.images:
        return file.parent
    for folder in _folders(file.parent, project):
        if (folder / record.images[0]).is_file():
            return folder
    what = f"image {record.images[0]!r} is in no folder beside the file"
    raise DataError(what, str(file), "--images FOLDER: the folder that image names start from")


def _folders(start: Path, project: Path) -> Iterator[Path]:
    yield start
    n_seen = 0
    for root in dict.fromkeys((start, project if project.is_dir() else start)):
        for parent, names, _ in os.walk(root):
            names[:] = sorted(name for name in names if not _is_skipped(Path(name)))
            for name in names:
                yield Path(parent) / name
                n_seen += 1
            if n_seen > _FOLDERS:
                return


def _is_skipped(path: Path) -> bool:
    return path.name.startswith(".") or path.name in _NOT_LOOKED_AT


def _written(path: Path, project: Path) -> str:
    whole, root = path.resolve(), project.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)
