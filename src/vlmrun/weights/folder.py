"""Folders that appear whole or not at all, filled with links where nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.weights.reader import DTYPES, INDEX, Reader
from vlmrun.weights.writer import Shape, Writer, blocks

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`, which takes its place on success and is removed on failure."""
    temporary, old = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _sync(temporary)
            if folder.exists():
                folder.replace(old)  # a kill while files are removed one by one must not leave half a model there
            temporary.replace(folder)
            artifact.fsync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            free = shutil.disk_usage(_existing(folder)).free
            raise CheckpointError(
                f"the model cannot be saved: {error}",
                str(folder),
                f"{free:,} bytes are free: make room, then run again",
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Whatever wrote them: no file is named before it is on the disk, or a power cut leaves a folder of empty ones."""
    for path in (*folder.rglob("*"), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def verifying(sources: Iterable[Path]) -> Iterator[None]:
    """Reads the weights of those sources that are artifacts and compares their digests, beside the work in the block.

    Raises:
        CheckpointError: at the end of the block, naming every file that is not what it was.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        jobs = [pool.submit(_verify, source) for source in sources]
        try:
            yield
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _verify(source: Path) -> None:
    if source.name == "weights" and (source.parent / artifact.NAME).is_file():
        source = source.parent
    found = artifact.read(source)
    if found is not None:
        kept = {name: file for name, file in found.files.items() if name.startswith("weights/")}
        artifact.verify(source, found.model_copy(update={"files": kept}), thorough=True)


def place(source: Path, destination: Path) -> None:
    """Puts a file there: a hard link when it belongs to an artifact (those are never written again), else a copy."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if _in_artifact(source):
        # Another file system, or one without links: copied like any other.
        with contextlib.suppress(OSError):
            os.link(source, destination)
            return
    with artifact.writing(destination) as temporary:
        shutil.copyfile(source, temporary)


def place_weights(source: Path, destination: Path) -> None:
    """Puts the weights of a model folder there, unchanged; `.bin` files become safetensors."""
    files = Reader(source).files()
    if any(file.suffix == ".bin" for file in files):
        reader = Reader(source)
        types = {name: (reader.dtype(name), reader.shape(name)) for name in reader.names()}
        with Writer(destination, types) as writer:
            for name, (_, shape) in types.items():
                writer.write(name, _pieces(reader, name, shape))
        return
    for file in files:
        place(file, destination / file.name)
    if (source / INDEX).is_file():
        place(source / INDEX, destination / INDEX)


def _pieces(reader: Reader, name: str, shape: Shape) -> Iterator[torch.Tensor]:
    return (reader.rows(name, start, stop) for start, stop in blocks(shape))


def place_named(source: Path, destination: Path, names: tuple[str, ...]) -> None:
    """Puts those of the named files there that exist."""
    for name in names:
        if (source / name).is_file():
            place(source / name, destination / name)


def place_rest(source: Path, destination: Path, dtype: str) -> None:
    """Puts all but the weights of a part there; its config names the new type unless that is `keep`."""
    weights = {file.name for file in Reader(source).files()} | {INDEX}
    for file in sorted(path for path in source.iterdir() if path.is_file() and path.name not in weights):
        if file.name == "config.json" and dtype in DTYPES:
            config = json.loads(file.read_text("utf-8"))
            config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
            artifact.write_json(destination / file.name, config)
        else:
            place(file, destination / file.name)


def place_tree(source: Path, destination: Path) -> None:
    """Puts a whole folder there."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place(file, destination / file.relative_to(source))


def _in_artifact(file: Path) -> bool:
    """Whether one of the nearest folders is a complete artifact (file: weights/part/name at the deepest)."""
    return any((parent / artifact.NAME).is_file() for parent in list(file.resolve().parents)[:3])


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
