"""Members of tar shards by offset: a shard is passed over once, and each image is read where it is.

A member is named by its place, `pretrain-0.tar@1536+843/000000037.jpg`: the shard below its folder, offset and size of
the content, the member's own name. Compressed shards have no offsets and are refused. Free of torch.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlmrun.errors import DataError

# The base name ends at the first dot of the file name; folders before it may have dots.
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")
_HIDDEN = re.compile(r"__[^/]*__(?:$|/)")  # webdataset's own notes, when the whole name or a folder looks so
_PLACE = re.compile(r"(?P<shard>.+\.tar)@(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>.+)")
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Place:
    """Where a member's content is."""

    shard: str  # path below the shards' folder
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.shard}@{self.offset}+{self.size}/{self.name}"

    def read(self, shard: Path) -> bytes:
        """The content, from the shard's file.

        Raises:
            DataError: when the shard is missing, or shorter than it was when it was indexed.
        """
        try:
            with shard.open("rb") as handle:
                handle.seek(self.offset)
                content = handle.read(self.size)
        except OSError as error:
            raise DataError(f"the shard cannot be read: {error.strerror}", str(shard), "fetch it") from error
        if len(content) < self.size:
            raise DataError(f"{self.name} is beyond the end of the shard", str(shard), "fetch it again")
        return content


@dataclass
class Entry:
    """One sample of a shard.

    Args:
        offset, end: where its first header begins, and where the next sample's does.
        parts: its members by what follows the base name, the last where several are of one name.
        repeated: names of members that there are several of.
    """

    key: str
    offset: int
    end: int = 0
    parts: dict[str, Place] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)


def parse_place(name: str) -> Place | None:
    """The place that a name stands for; None for the name of a file."""
    found = _PLACE.fullmatch(name)
    if found is None:
        return None
    return Place(found["shard"], int(found["offset"]), int(found["size"]), found["name"])


def split_name(name: str) -> tuple[str, str] | None:
    """A member's base name and what follows its first dot; None for one that belongs to no sample."""
    found = _NAME.fullmatch(name)
    return None if found is None or _HIDDEN.match(name) else (found[1], found[2].lower())


def entries(folder: Path, shard: str) -> Iterator[Entry]:
    """The samples of a shard in order: neighboring members with one base name are one.

    Raises:
        DataError: when the shard is missing, compressed, damaged, or breaks off.
    """
    current: Entry | None = None
    end = 0
    for member in members(folder / shard):
        end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        named = split_name(member.name)
        if named is None:
            continue
        key, part = named
        if current is None or key != current.key:
            if current is not None:
                current.end = member.offset
                yield current
            current = Entry(key, member.offset)
        if part in current.parts:
            current.repeated.append(member.name)
        current.parts[part] = Place(shard, member.offset_data, member.size, member.name)
    if current is not None:
        current.end = end
        yield current


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers of all plain files of a tar file; contents are skipped."""
    if path.suffix != ".tar":
        raise DataError("a compressed shard cannot be read by offset", str(path), f"gunzip it to {path.stem}.tar")
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # the module would keep every header
                if member.isreg():
                    yield member
            _check_end(path, archive.offset)
    except FileNotFoundError as error:
        raise DataError("the shard does not exist", str(path), "fetch it, or leave it out of the split") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"the shard is damaged: {error}", str(path), "fetch it again, or convert it again") from error


def _check_end(path: Path, offset: int) -> None:
    """Two blocks of zeros end a tar file; where they are missing it has been cut off, or a header is broken."""
    with path.open("rb") as handle:
        handle.seek(offset)
        if handle.read(BLOCK) != bytes(BLOCK):
            raise DataError(
                f"the shard breaks off, or is damaged, at byte {offset}",
                str(path),
                "fetch it again, or convert it again",
            )
