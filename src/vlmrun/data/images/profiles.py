"""Color profiles in image files: numbers that mean the colors of a screen, a camera or a printer, brought to sRGB.

A viewer follows them: without its profile a photograph in Display P3 looks pale, and one for print in wrong colors.
Free of torch.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

from PIL import Image, ImageCms

from vlmrun import logs

log = logs.get(__name__)

# Color spaces of profiles, and the mode in which their values are handed over; classes of profiles that describe colors
# (not those that link two devices, or name colors).
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_CLASSES = ("mntr", "scnr", "prtr", "spac")
_GRAY = ("1", "L", "LA", "La", "I", "F")
_UNSEEN = 2  # of 255: a profile that changes no color by more is sRGB itself, rounded
_KEPT = 32  # profiles; data sets have a few


def kind(image: Image.Image) -> str | None:
    """What `data lint` calls an opened image's profile, from its header; None: it has none, or sRGB's."""
    if "icc_profile" not in image.info:
        return None
    try:
        return "image_profile" if _transform(image) else None
    except ValueError:
        return "image_profile_broken"


def to_srgb(image: Image.Image, profiled: Image.Image) -> Image.Image:
    """A decoded image as RGB; colors mean what a profile says, if it has one that can be used.

    Args:
        image: gray, RGB or CMYK.
        profiled: the image as it was opened, which has the profile.
    """
    try:
        transform = _transform(profiled)
    except ValueError as error:
        _warn(str(error))
        transform = None
    if transform is None:
        return image.convert("RGB")
    found = ImageCms.applyTransform(image.convert(transform.input_mode), transform)
    assert found is not None  # None is for a change in place
    return found


def _transform(image: Image.Image) -> Any:
    """To sRGB; None where nothing changes.

    Raises:
        ValueError: when the profile is damaged, or is for other colors than the image has.
    """
    if "icc_profile" not in image.info or image.mode == "LAB":  # LAB means the same everywhere
        return None
    data = image.info["icc_profile"]
    space, transform = _known(data if isinstance(data, bytes) else b"")
    gray = image.mode in _GRAY or image.mode.startswith("I;16")
    fitting = ("GRAY", "RGB") if gray else ("CMYK",) if image.mode == "CMYK" else ("RGB",)
    if space not in fitting:
        raise ValueError(f"it is for {space or 'no'} colors, the image has {' or '.join(fitting)}")
    return transform


@lru_cache(maxsize=_KEPT)
def _known(data: bytes) -> tuple[str, Any]:
    """A profile's color space, empty when it is damaged, and the transform to sRGB, None when it is sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space, is_of = profile.profile.xcolor_space.strip(), profile.profile.device_class
        if space not in _MODES or is_of not in _CLASSES:
            return "", None
        made = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), _MODES[space], "RGB")
        return space, None if space != "CMYK" and _is_srgb(made) else made
    except (OSError, TypeError, ValueError, AttributeError, ImageCms.PyCMSError):
        return "", None


def _is_srgb(transform: Any) -> bool:
    """Whether it leaves 4,096 colors of the whole cube, or all grays, as they are."""
    if transform.input_mode == "L":
        asked = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        steps = range(0, 256, 17)
        asked = Image.frombytes(
            "RGB", (256, 16), bytes(v for r in steps for g in steps for b in steps for v in (r, g, b))
        )
    found = ImageCms.applyTransform(asked, transform)
    assert found is not None
    pairs = zip(asked.convert("RGB").tobytes(), found.tobytes(), strict=True)
    return all(abs(before - after) <= _UNSEEN for before, after in pairs)


@lru_cache(maxsize=_KEPT)
def _warn(why: str) -> None:
    """Once for each reason in a process: the images are listed by `data lint`."""
    log.warning("an image's color profile is ignored: %s; `vlmrun data lint` lists such images", why)
