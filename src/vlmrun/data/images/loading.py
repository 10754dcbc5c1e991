"""Images as RGB, and what their headers say. Free of torch."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from vlmrun.data.images import seeing
from vlmrun.data.images.finding import MAX_PIXELS, ImageFile, ImageFolder, find_image
from vlmrun.data.images.opening import of_file, opened
from vlmrun.data.images.seeing import ON_WHITE, View


def open_image(folder: ImageFolder | None, name: str, where: str = "", view: View = ON_WHITE) -> Image.Image:
    """Opens an image below a folder and converts it to RGB.

    Args:
        where: the record that names the image.
        view: how images are seen that can be seen in two ways.

    Raises:
        DataError: when the file is outside the folder, missing, damaged, or too large to be opened safely.
    """
    return load_image(find_image(folder, name, where), where, view=view)


def load_image(
    file: Path | ImageFile, where: str = "", *, view: View = ON_WHITE, draft: int | None = None
) -> Image.Image:
    """Opens an image from anywhere; raises as `open_image`.

    Args:
        where: the record that names the image; empty for one that the user names.
        draft: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as no edge falls below so
            many pixels; several times faster, and not equal bit for bit.
    """
    with of_file(file, where) as image:
        if draft is not None:
            image.draft("RGB", (draft, draft))
        return seeing.to_rgb(image, view)


def image_of(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, view: View = ON_WHITE) -> Image.Image:
    """An image file that was sent; raises as `open_image`."""
    with opened(BytesIO(data), name, fix="send another image", max_pixels=max_pixels) as image:
        return seeing.to_rgb(image, view)


def image_size(folder: ImageFolder | None, name: str, where: str = "", view: View = ON_WHITE) -> tuple[int, int]:
    """Width and height, read from the file's header; raises as `open_image`."""
    with of_file(find_image(folder, name, where), where) as image:
        return seeing.size(image, view)


def size_and_kinds(file: ImageFile, view: View, *, decode: bool) -> tuple[tuple[int, int], list[str]]:
    """Width and height, and what is unusual about an image (`seeing.kinds`); raises as `open_image`.

    Args:
        decode: also decode its pixels, so that damage behind the header is found.
    """
    with of_file(file, "") as image:
        found = seeing.size(image, view), seeing.kinds(image)
    if decode:
        load_image(file, view=view)
    return found
