"""Artifacts: a stage's result folder, complete exactly when its `artifact.json` exists.

`artifact.json` is written last (temporary name, fsync, rename) and lists every file with size and SHA-256, so a folder
can be trusted, moved and asked where it came from.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlmrun import __version__, regular
from vlmrun.errors import CheckpointError

NAME = "artifact.json"
_LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "safetensors", "tokenizers", "pillow", "numpy")


class File(BaseModel):
    """One file of an artifact. `mtime_ns` lets a later look trust it without reading it again, as git's index does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_bytes: int
    sha256: str
    mtime_ns: int


class Parent(BaseModel):
    """An artifact this one was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    key: str
    path: str


class Artifact(BaseModel):
    """What `artifact.json` holds.

    `summary` is a flat dict of what a table shows: `steps`, `loss`, `accuracy`, `seconds`, ... whichever the kind has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    key: str
    run: str
    created: str  # ISO 8601, UTC
    version: str = __version__
    parents: list[Parent]
    summary: dict[str, Any]
    environment: dict[str, str]
    files: dict[str, File]


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Makes renames inside a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed into place, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty for one that is missing, damaged, or holds another value."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_files(folder: Path, roots: tuple[str, ...]) -> dict[str, File]:
    """Size and digest of every file below `folder/<root>` (a folder or a file), by path relative to `folder`."""
    found: dict[str, File] = {}
    for root in roots:
        top = folder / root
        paths = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        for path in paths:
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = File(
                n_bytes=status.st_size, sha256=digest(path), mtime_ns=status.st_mtime_ns
            )
    return found


def now() -> str:
    """The time as `created` holds it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def environment() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, as far as they are installed."""
    known = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


def parent(folder: Path) -> Parent | None:
    """A finished artifact as its children name it; None when the folder is none."""
    found = read(folder)
    return None if found is None else Parent(name=found.name, key=found.key, path=str(folder))


def read(folder: Path) -> Artifact | None:
    """The artifact in a folder, or None when it is not complete."""
    path = folder / NAME
    if not path.is_file():
        return None
    regular.require(path, json=True)
    try:
        return Artifact.model_validate_json(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{NAME} cannot be read: {str(error).splitlines()[0]}",
            str(path),
            "it was changed by hand or damaged: restore it, or remove the folder to make the stage again",
        ) from error


def verify(folder: Path, artifact: Artifact, *, thorough: bool = False) -> None:
    """Checks that every listed file is there and unchanged, and that no file of a model was put beside them.

    A file whose size and modification time are as recorded is trusted unless `thorough`. Any other is read; what it was
    found to be is kept beside the artifact (`digests`), so that a copied folder is read once and not at every look.

    Raises:
        CheckpointError: naming every file that is missing, new or different.
    """
    wrong, doubtful = [f"{name} (new)" for name in _new(folder, artifact)], []
    for name, file in artifact.files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} (missing)")
            continue
        status = path.stat()
        if status.st_size != file.n_bytes:
            wrong.append(f"{name} ({status.st_size} bytes, was {file.n_bytes})")
        elif thorough or status.st_mtime_ns != file.mtime_ns:
            doubtful.append(name)
    found = digests(folder, doubtful, known=not thorough)
    wrong += [f"{name} (content changed)" for name in doubtful if found[name] != artifact.files[name].sha256]
    if wrong:
        raise CheckpointError(
            f"artifact {artifact.name!r} is damaged: {'; '.join(wrong)}",
            str(folder),
            "restore these files, or remove the folder to make the stage again; to use them as they are now, copy its "
            "weights folder elsewhere",
        )


def _new(folder: Path, artifact: Artifact) -> list[str]:
    """Files that readers of models would take for part of one, in folders whose files are listed."""
    homes = {folder / Path(name).parent for name in artifact.files if "/" in name}
    found = (path for home in homes for path in home.glob("*") if path.suffix in _OF_MODELS and path.name[0] != ".")
    return sorted({path.relative_to(folder).as_posix() for path in found} - artifact.files.keys())


_OF_MODELS = (".safetensors", ".bin", ".pt", ".json", ".model", ".jinja")


def digests(folder: Path, names: Iterable[str], *, known: bool = True) -> dict[str, str]:
    """SHA-256 of files of a folder, several at a time: hashing lets go of the interpreter.

    Args:
        known: trust what an earlier call found of a file of the same size and modification time, which it kept in
            `.verified.json` in the folder, if it could write there.
    """
    wanted = {name: [(folder / name).stat().st_size, (folder / name).stat().st_mtime_ns] for name in names}
    kept = _kept(folder) if known else {}
    found = {name: entry[2] for name, at in wanted.items() if (entry := kept.get(name)) and entry[:2] == at}
    missing = sorted(wanted.keys() - found.keys())
    with ThreadPoolExecutor() as pool:
        found |= dict(zip(missing, pool.map(digest, (folder / name for name in missing)), strict=True))
    if known and missing:
        with contextlib.suppress(OSError):  # a folder that cannot be written is read again the next time
            write_json(folder / _VERIFIED, kept | {name: [*wanted[name], found[name]] for name in missing})
    return found


_VERIFIED = ".verified.json"


def _kept(folder: Path) -> dict[str, list[Any]]:
    """What an earlier call found, by file: size, modification time, digest. Anything odd is as if it were not there."""
    path = folder / _VERIFIED
    try:
        regular.require(path, json=True)
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, CheckpointError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: entry for name, entry in values.items() if isinstance(entry, list) and len(entry) == 3}
