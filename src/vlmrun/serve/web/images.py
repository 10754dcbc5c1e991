"""How the page sends images: LLaVA's page's modes.

Source: haotian-liu/LLaVA@c121f043 llava/conversation.py process_image. There an image of less than a pixel's width
after shrinking fails; here every edge keeps one pixel.
"""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from vlmrun.data.images.open import pad_to_square
from vlmrun.errors import DataError, suggest

MODES = ("Default", "Pad", "Resize", "Crop")
_PAD_COLOUR = (122, 116, 104)
_RESIZED = 336
_LONGEST, _SHORTEST = 1344, 672


def prepared(image: Image.Image, mode: str) -> Image.Image:
    """The image as it is sent: padded to a square or resized as the mode says (Default and Crop leave that to the
    model), and no longer than 1344 pixels.

    Raises:
        DataError: for a mode that there is not.
    """
    if mode not in MODES:
        raise DataError(f"no image mode {mode!r}", "", suggest(mode, MODES, noun="modes"))
    if mode == "Pad":
        image = pad_to_square(image, _PAD_COLOUR)
    elif mode == "Resize":
        image = image.resize((_RESIZED, _RESIZED))
    if max(image.size) <= _LONGEST:
        return image
    ratio = max(image.size) / min(image.size)
    short = max(1, int(min(_LONGEST / ratio, _SHORTEST, min(image.size))))
    long = int(short * ratio)
    return image.resize((long, short) if image.width >= image.height else (short, long))


def data_url(image: Image.Image) -> str:
    """The image as a PNG in a data URL."""
    file = BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
