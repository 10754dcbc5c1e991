"""Finding the file of an image that a record names: inside its folders, whatever way its name is written.

A name is looked up as it is written first. Where nothing is there, its letters may be composed in another Unicode form
(macOS decomposes names), or Windows' backslashes may stand between folders; both mean the same file. Free of Pillow.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vlmrun import regular
from vlmrun.config import derived
from vlmrun.config.schema import DataConfig
from vlmrun.config.schema.data import MEGAPIXELS
from vlmrun.data.images import missing
from vlmrun.data.shards.tar import Place, parse_place
from vlmrun.errors import DataError

MAX_PIXELS = int(MEGAPIXELS * 1_000_000)


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of a data set are.

    Args:
        root: the folder that their names start from. No file outside it is opened, links and `..` followed.
        others: further folders that links may lead to.
        max_pixels: images with more are refused.
    """

    root: Path
    others: tuple[Path, ...] = ()
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Makes the folders absolute: what is known of them is remembered, whatever the working directory is later."""
        object.__setattr__(self, "root", self.root.absolute())
        object.__setattr__(self, "others", tuple(other.absolute() for other in self.others))


def folder_of(data: DataConfig) -> ImageFolder | None:
    """The image folder of a data entry: that of its shards, or `images`. None: it has none."""
    root = data.annotations if derived.in_shards(data) else data.images
    if root is None:
        return None
    others = tuple(Path(other).expanduser() for other in data.image_roots)
    return ImageFolder(Path(root).expanduser(), others, int(data.image_megapixels * 1_000_000))


@dataclass(frozen=True)
class ImageFile:
    """An image's file, or its place in the shard that `path` is."""

    path: Path
    place: Place | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.path.name if self.place is None else self.place.name

    def __str__(self) -> str:
        return str(self.path if self.place is None else self.path.with_name(str(self.place).rpartition("/")[2]))

    def opened(self) -> BinaryIO:
        """The file's content, to be read and closed; never waits, as a named pipe would make one.

        Raises:
            DataError: when it is no regular file.
            OSError: when it cannot be opened.
        """
        if self.place is not None:
            return BytesIO(self.place.read(self.path))
        handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        kind = regular.kind(os.fstat(handle).st_mode)
        if kind is not None:
            os.close(handle)
            raise DataError(f"image {self.name!r} is {kind}, not an image file", str(self.path), "name an image file")
        return os.fdopen(handle, "rb")


def file_at(path: Path) -> ImageFile:
    """An image that the user names by its path, wherever it is.

    Raises:
        DataError: when there is none, or it is no regular file.
    """
    problem = _look(path)
    if problem is None:
        return ImageFile(path)
    if problem == "nothing":
        near = missing.nearest(path.parent, path.name)
        fix = "check the path" if near is None else f"did you mean {near!r}?"
        raise DataError(f"image {path.name!r} does not exist", str(path), fix)
    raise DataError(f"image {path.name!r} {problem}", str(path), "name an image file")


def find_image(folder: ImageFolder | None, name: str, where: str = "", *, suggesting: bool = True) -> ImageFile:
    """An image below a folder, not opened yet: a file, or a member of a tar shard (`shards.tar.Place`).

    Args:
        where: the record that names the image.
        suggesting: name the nearest file when there is none; too slow for very many.

    Raises:
        DataError: when the file is outside the folder, missing, no regular file, or in a folder that may not be read.
    """
    if folder is None:
        raise DataError(
            f"record names image {missing.quoted(name)}, but its data has no image folder",
            where,
            "set data.<name>.images",
        )
    place = parse_place(name)
    file = name if place is None else place.shard
    plain = folder.root / file
    if _is_plain(folder, plain):
        return ImageFile(plain, place, folder.max_pixels)
    if missing.is_no_name(file) and not os.path.lexists(plain):
        raise missing.error(folder.root, file, where, suggesting=suggesting)
    for spelling in _spellings(folder.root, file):
        path = _confined(folder, spelling, where)
        if (problem := _look(path)) is None:
            return ImageFile(path, place, folder.max_pixels)
        if problem != "nothing":
            place_of_it = f"{path}, named in {where}" if where else str(path)
            raise DataError(f"image {missing.quoted(name)} {problem}", place_of_it, "name an image file")
    raise missing.error(folder.root, file, where, suggesting=suggesting)


def _is_plain(folder: ImageFolder, path: Path) -> bool:
    """Whether this is a regular file in a folder known to be inside: nearly every image, so one look-up is enough."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
    except (OSError, ValueError):
        return False
    return _is_inside(folder, path.parent)


@lru_cache(maxsize=1 << 14)
def _is_inside(folder: ImageFolder, path: Path) -> bool:
    return any(Path(os.path.realpath(path)).is_relative_to(top) for top in _tops(folder))


@lru_cache(maxsize=64)
def _tops(folder: ImageFolder) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(top)) for top in (folder.root, *folder.others))


def _confined(folder: ImageFolder, name: str, where: str) -> Path:
    """The real path of a name, inside the folder or one of the others."""
    shown = missing.quoted(name)
    try:
        top = _tops(folder)[0]
        path = Path(os.path.realpath(top / name))
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
        raise DataError(f"image name {shown} is not a usable path: {error}", where, "correct the name") from error
    if any(path.is_relative_to(each) for each in _tops(folder)):
        return path
    by_name = Path(os.path.normpath(top / name))
    if by_name.is_relative_to(top):  # so it is a link that leads out
        raise DataError(
            f"image {shown} is outside the image folder {top}: it is a link to {path}",
            where,
            f"allow links to that folder: data.<name>.image_roots=[{path.parent}]",
        )
    raise DataError(
        f"image {shown} is outside the image folder {top}",
        where,
        f"keep images below data.<name>.images, or allow their folder: data.<name>.image_roots=[{path.parent}]",
    )


def _look(path: Path) -> str | None:
    """None for a regular file, "nothing", or what keeps it from being one."""
    try:
        kind = regular.kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError as error:  # no right to look into the folder, a name that is too long
        return f"cannot be found: {error.strerror}"
    except ValueError as error:
        return f"cannot be found: {error}"
    return None if kind is None else f"is {kind}, not an image file"


def _spellings(root: Path, name: str) -> list[str]:
    """A name as it is written, and as other systems write the same name."""
    slashed = [name, name.replace("\\", "/")]
    return list(dict.fromkeys([name, *(found for each in slashed if (found := _on_disk(root, each)) is not None)]))


def _on_disk(root: Path, name: str) -> str | None:
    """The name with each of its parts in the Unicode form that is on the disk; None when there is no such file."""
    parts: list[str] = []
    for part in name.split("/"):
        forms = dict.fromkeys([part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)])
        found = next((form for form in forms if _exists(root.joinpath(*parts, form))), None)
        if found is None:
            return None
        parts.append(found)
    return "/".join(parts)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL
        return False
