"""Opening images safely: confined to their folder, limited in size, damage named. Free of torch."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vlmrun.data.sample import Question, Rejected
from vlmrun.data.shards.tar import Place, parse_place
from vlmrun.errors import DataError, closest

# What Pillow's decoders raise on damaged files, by experience: far more than the documented OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Picture:
    """An image's file, or its place in the shard that `path` is."""

    path: Path
    place: Place | None = None

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.path.name if self.place is None else self.place.name

    def __str__(self) -> str:
        return str(self.path if self.place is None else self.path.with_name(str(self.place).rpartition("/")[2]))

    def opened(self) -> Path | BinaryIO:
        """What Pillow reads it from."""
        return self.path if self.place is None else self.place.open(self.path)


def open_image(root: Path | None, name: str, where: str = "") -> Image.Image:
    """Opens an image below `root` and converts it to RGB. EXIF rotation is ignored, as upstream ignores it.

    Args:
        root: the folder that the file must stay in, links and `..` followed.
        where: the record that names the image.

    Raises:
        DataError: when the file is outside the root, missing, damaged, or too large to be opened safely.
    """
    return load_image(find_image(root, name, where), where)


def find_image(root: Path | None, name: str, where: str = "", *, suggesting: bool = True) -> Picture:
    """An image below `root`, not opened yet: a file, or a member of a tar shard (`shards.tar.Place`).

    Args:
        suggesting: name the nearest file when there is none; too slow for very many.

    Raises:
        DataError: when the file is outside the root, missing, or in a folder that may not be looked into.
    """
    place = parse_place(name)
    path = _confined(root, name if place is None else place.shard, where)
    try:
        is_there = path.is_file()
    except OSError as error:  # no right to look into the folder, a name that is too long
        raise DataError(f"image {name!r} cannot be found: {error.strerror}", _place(path, where), "check it") from error
    if not is_there:
        # A near name is looked for among the first files only: folders of a million images are common.
        names = [p.name for p in islice(path.parent.iterdir(), 1000)] if suggesting and path.parent.is_dir() else []
        near = closest(path.name, names)
        fix = f"did you mean {near!r}?" if near else "check data.<name>.images, or on_error: skip"
        raise DataError(f"image {name!r} does not exist", _place(path, where), fix)
    return Picture(path, place)


def load_image(picture: Path | Picture, where: str = "", *, draft: int | None = None) -> Image.Image:
    """Opens an image from anywhere.

    Args:
        where: the record that names the image; empty for one a person names.
        draft: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as no edge falls below so
            many pixels; several times faster, and not equal bit for bit.
    """
    try:
        source = picture.opened() if isinstance(picture, Picture) else picture
        return _decoded(source, picture.name, _place(picture, where), draft)
    except FileNotFoundError as error:
        raise DataError(f"image {picture.name!r} does not exist", _place(picture, where), "check the path") from error
    except _DAMAGED as error:
        raise DataError(
            f"image {picture.name!r} cannot be read: {error}",
            _place(picture, where),
            "replace the file, or on_error: skip" if where else "choose another image",
        ) from error


def image_of(data: bytes, name: str) -> Image.Image:
    """An image file that was sent; raises as `load_image`."""
    try:
        return _decoded(BytesIO(data), name, "", None)
    except _DAMAGED as error:
        raise DataError(f"{name} cannot be read: {error}", "", "send another image") from error


def _decoded(source: Path | BinaryIO, name: str, place: str, draft: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                if draft is not None:
                    image.draft("RGB", (draft, draft))
                return image.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise DataError(
            f"image {name!r} is too large: {error}", place, f"make it smaller than {Image.MAX_IMAGE_PIXELS} pixels"
        ) from error


def image_size(root: Path | None, name: str, where: str = "") -> tuple[int, int]:
    """Width and height, read from the file's head; raises as `open_image`."""
    picture = find_image(root, name, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(picture.opened()) as image:
                return image.size
    except (*_DAMAGED, Image.DecompressionBombError):
        return load_image(picture, where).size  # says what is wrong with it


def _confined(root: Path | None, name: str, where: str) -> Path:
    if root is None:
        raise DataError(
            f"record names image {name!r}, but its data has no image folder", where, "set data.<name>.images"
        )
    try:
        top = _resolved(root)
        path = Path(os.path.realpath(top / name))
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
        raise DataError(f"image name {name!r} is not a usable path: {error}", where, "correct the name") from error
    if not path.is_relative_to(top):
        raise DataError(
            f"image {name!r} lies outside the image folder {top}", where, "keep images below data.<name>.images"
        )
    return path


@lru_cache(maxsize=64)
def _resolved(root: Path) -> Path:
    return root.resolve()


def _place(picture: Path | Picture, where: str) -> str:
    return f"{picture}, named in {where}" if where else str(picture)


def missing(root: Path | None, question: Question) -> Rejected | None:
    """What keeps an image of a question from being found: before any is asked, and not when its turn comes."""
    try:
        for name in question.images:
            find_image(root, name, suggesting=False)
    except DataError as error:
        return Rejected(question.id, question.source, error.problems[0].what, error.problems[0].fix)
    return None
