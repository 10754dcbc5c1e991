"""The only place where image files are opened: known formats, a limit of pixels, damage as data errors.

Nothing else in vlmrun calls Pillow's `open`. Free of torch and numpy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from vlmrun.data.images.finding import MAX_PIXELS, ImageFile, file_at
from vlmrun.errors import DataError, VlmrunError

TOO_LARGE = "is too large"
SMALLER = "make it smaller"
MOST_PIXELS = 178_000_000  # beyond about this number Pillow refuses by itself

# Formats of pixels and nothing else. Not here: those that start programs or call other libraries (EPS, WMF, GRIB,
# HDF5), and those that no data set uses. TGA is last: it has no signature.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "AVIF", "TIFF", "JPEG2000", "PPM", "ICO", "QOI", "DDS", "SGI", "PCX",
    "TGA",
)  # fmt: skip

# First bytes of files that are named like images, but are not opened here.
_OTHERS = (
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!doctype html", "a web page: the download failed"),
    (b"<html", "a web page: the download failed"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file, perhaps an SVG drawing"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjxl ", "a JPEG XL image"),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


@contextmanager
def of_file(file: Path | ImageFile, where: str) -> Iterator[Image.Image]:
    """As `opened`, for an image by its place.

    Args:
        where: the record that names the image; empty for one that the user names.
    """
    found = file_at(file) if isinstance(file, Path) else file
    name, place = f"image {found.name!r}", f"{found}, named in {where}" if where else str(found)
    fix = "replace the file, or on_error: skip" if where else "choose another image"
    smaller = SMALLER if isinstance(file, Path) else f"{SMALLER}, or raise data.<name>.image_megapixels"
    try:
        content = found.opened()
    except FileNotFoundError as error:  # it went while we looked
        raise DataError(f"{name} does not exist", place, "check the path") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", place, fix) from error
    with content, opened(content, name, place, fix=fix, smaller=smaller, max_pixels=found.max_pixels) as image:
        yield image


@contextmanager
def opened(  # noqa: PLR0913 - what is read, what errors say, and what is allowed
    file: BinaryIO,
    name: str,
    place: str = "",
    *,
    fix: str,
    smaller: str = SMALLER,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Iterator[Image.Image]:
    """An image as far as its header, for the time of a `with`; what Pillow raises inside is a data error.

    Args:
        name: what errors call it.
        place: where it is, for errors.
        fix: what to do about a damaged one.
        smaller: what to do about one of more than `max_pixels`.

    Raises:
        DataError: when it is of no known format, damaged, or has more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as image:
                _check_size(image, name, place, max_pixels, smaller)
                yield image
    except VlmrunError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} {TOO_LARGE}: {error}", place, SMALLER) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} cannot be read: it is {_described(file)}", place, fix) from error
    except MemoryError as error:
        raise DataError(f"{name} cannot be read: there is no memory for it", place, fix) from error
    except Exception as error:  # decoders raise far more than the documented OSError on damaged files
        raise DataError(f"{name} cannot be read: {error or type(error).__name__}", place, fix) from error


def _check_size(image: Image.Image, name: str, place: str, max_pixels: int, smaller: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        what = f"{width} x {height} are {width * height / 1e6:.1f} million pixels, {max_pixels / 1e6:g} are allowed"
        fix = smaller if width * height <= MOST_PIXELS else SMALLER  # no limit can be raised beyond
        raise DataError(f"{name} {TOO_LARGE}: {what}", place, fix)


def _described(file: BinaryIO) -> str:
    """What a file is that is not an image of a known format."""
    file.seek(0)
    head = file.read(64)
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return "a HEIC image: convert it to JPEG" if head[8:12] in _HEIC else "a video"
    start = head.lstrip().lower()
    known = (words for magic, words in _OTHERS if head.startswith(magic) or start.startswith(magic))
    return next(known, f"no image of a format that is opened here ({', '.join(FORMATS)})")
