"""Images that stand inside a question file in base64: written to files once, by their content."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from vlmrun import artifact
from vlmrun.errors import DataError


def unpack(text: str, folder: Path) -> str:
    """Writes an image into a folder unless it is there, and returns its name.

    Raises:
        DataError: for text that is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"an image is not base64: {error}", str(folder), "fetch the question file again") from error
    name = hashlib.sha256(content).hexdigest()[:24]
    path = folder / name
    if not path.is_file():
        with artifact.writing(path) as temporary:
            temporary.write_bytes(content)
    return name
