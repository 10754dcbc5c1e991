"""Images as RGB: upright, composed on a background, with their whole range of gray and their colors. Free of torch.

A file says more than its pixels: which side is up (EXIF), what is transparent, how many bits a gray value has, which
colors the numbers mean (`profiles`). Viewers follow it, and so does vlmrun. The original codes only call
`convert("RGB")`, as `View(None)` does (`compat.images`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from vlmrun.data.images import profiles

VERSION = 2  # of what a viewer shows; images that were prepared by another are not used
WHITE = (255, 255, 255)  # what a page shows behind an image
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags, and a value


@dataclass(frozen=True)
class View:
    """How images are seen that can be seen in two ways.

    Args:
        background: RGB that transparent images are composed on; None: images are as upstream's `convert("RGB")` leaves
            them, with no regard to transparency, EXIF orientation, depth and color profile.
    """

    background: tuple[int, int, int] | None = WHITE


ON_WHITE = View()
AS_UPSTREAM = View(None)


def view_of(background: str | None) -> View:
    """The view of a color `#rrggbb`; None: upstream's."""
    if background is None:
        return AS_UPSTREAM
    red, green, blue = bytes.fromhex(background.removeprefix("#"))
    return View((red, green, blue))


def color(view: View) -> str | None:
    """What `view_of` makes the view of."""
    return None if view.background is None else "#" + bytes(view.background).hex()


def to_rgb(image: Image.Image, view: View) -> Image.Image:
    """The first frame of an opened image as RGB; raises what Pillow does."""
    if view.background is None:
        return image.convert("RGB")
    turn = _TURNED.get(orientation(image))
    shown = _shown(image, view.background)
    return shown if turn is None else shown.transpose(turn)


def size(image: Image.Image, view: View) -> tuple[int, int]:
    """Width and height of what `to_rgb` gives, from the header."""
    width, height = image.size
    turned = view.background is not None and orientation(image) in _ON_ITS_SIDE
    return (height, width) if turned else (width, height)


def kinds(image: Image.Image) -> list[str]:
    """What is unusual about an opened image, from its header; `findings.NOTES` explains the words."""
    found = {
        "image_transparent": _is_transparent(image),
        "image_turned": orientation(image, of_tiff=True) in _TURNED,
        "image_deep": image.mode in _DEEP,
        "image_colors": image.mode in ("CMYK", "YCbCr", "LAB"),
        "image_animated": bool(getattr(image, "is_animated", False)),
    }
    profile = profiles.kind(image)
    return [kind for kind, is_so in found.items() if is_so] + ([profile] if profile else [])


def orientation(image: Image.Image, *, of_tiff: bool = False) -> int:
    """EXIF's number of how the image must be turned, 1: not at all.

    Args:
        of_tiff: also of TIFF files, which Pillow turns by itself.
    """
    if image.format == "TIFF" and not of_tiff:
        return 1
    try:
        if image.format == "PNG" and "exif" not in image.info and _exif_follows(image):
            image.load()
        # Not the PNG reader's own method, which decodes the pixels of every image without EXIF.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF raises any exception; viewers show such an image as it is stored
        return 1
    return value if isinstance(value, int) else 1


def _exif_follows(image: Image.Image) -> bool:
    """Whether a PNG's EXIF stands behind its pixels, where opening it has not read. Chunks are stepped over."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return False
    start = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
        return False
    finally:
        file.seek(start)


def _shown(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """As RGB, not turned yet."""
    raw = _raw_mode(image)
    image.load()
    if image.mode in _DEEP:
        return _deep(image, background)
    if image.mode == "LAB":
        found = ImageCms.applyTransform(image, _from_lab())
        assert found is not None  # None is for a change in place
        return found
    if not _is_transparent(image):
        return profiles.to_srgb(image, image)
    if "transparency" in image.info:
        image.info["transparency"] = _of_pixels(image.info["transparency"], raw)
    opaque = image.convert("RGBA")
    if image.format in ("BMP", "DIB", "TGA") and opaque.getchannel("A").getextrema() == (0, 0):
        return profiles.to_srgb(
            opaque.convert("RGB"), image
        )  # these files have room for alpha that many programs leave at zero
    canvas = Image.new("RGB", opaque.size, background)
    canvas.paste(profiles.to_srgb(opaque.convert("RGB"), image), mask=opaque)
    return canvas


def _is_transparent(image: Image.Image) -> bool:
    """Whether some of it may be transparent."""
    palette = image.palette if image.mode == "P" else None
    return (
        image.mode in _WITH_ALPHA
        or "transparency" in image.info
        or (palette is not None and palette.mode.endswith("A"))
    )


def _raw_mode(image: Image.Image) -> str:
    """How pixels are stored, known before they are decoded: `L;2`, `RGB;16B`."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _of_pixels(transparency: Any, raw: str) -> Any:
    """PNG's transparent color in the values that pixels have once they are decoded to 8 bits."""
    if isinstance(transparency, tuple):
        return tuple(value >> 8 for value in transparency) if raw.startswith("RGB;16") else transparency
    steps = {"1": 1, "L;2": 3, "L;4": 15}.get(raw)
    if steps is None or not isinstance(transparency, int) or transparency > steps:
        return transparency
    return transparency * 255 // steps


def _deep(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    gray = scaled(values, _top(image, tags))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    pixels = np.array(profiles.to_srgb(Image.fromarray(gray), image))  # [H, W, 3]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = background
    return Image.fromarray(pixels)


def _top(image: Image.Image, tags: Any) -> int | None:
    """The value of white, where the file says it; None: where it leaves that open."""
    if image.format == "TIFF" and tags.get(_BITS_PER_SAMPLE) == (12,):
        return 4095
    return 65535 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else None


def scaled(values: np.ndarray, top: int | None) -> np.ndarray:
    """Gray values of any type in 8 bits.

    Args:
        top: the value of white. None: the first of 1 (of floats), 255 and 65535 that no value exceeds; values beyond
            these, or below 0, are stretched from the smallest to the largest. What is no number is black.
    """
    if top == 65535 and values.dtype.kind == "u":
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    tops = [top] if top is not None else [1, 255, 65535] if values.dtype.kind == "f" else [255, 65535]
    white = next((float(each) for each in tops if high <= each), None) if low >= 0 else None
    bottom = low if white is None else 0.0
    span = (high if white is None else white) - bottom
    numbers = np.clip(np.where(finite, numbers, bottom), bottom, bottom + span)
    return np.rint((numbers - bottom) / (span or 1.0) * 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _from_lab() -> Any:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")
