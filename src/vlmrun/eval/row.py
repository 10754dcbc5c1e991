"""One question of a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LEAST_BASE64 = 200  # characters; a shorter cell is a file name, unless it begins as an image does and has no dot
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "data:image/")  # PNG, JPEG, GIF, WebP


def hash_of(text: str) -> str:
    """A short digest."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One question.

    Args:
        id: unlike all others; the file's own, with `#2` and so on behind it where that is used again.
        text: as it is asked, without the image tag.
        stored: as it is kept with the answer, which upstream's scripts do without some tails.
        image: file name below the image folder, or the image itself in base64.
        fields: the whole row, with what its gold adds.
        letters: of a question with options, the original letter of each place.
    """

    id: str
    own_id: Any
    text: str
    stored: str
    image: str | None
    category: str
    fields: Mapping[str, Any] = field(repr=False)
    letters: tuple[str, ...] = ()

    @property
    def picture(self) -> str | None:
        """A short name of the image, by which answers are clustered."""
        if self.image is None or not _is_inline(self.image):
            return self.image
        return f"base64:{hash_of(self.image)}"


def _is_inline(cell: str) -> bool:
    return len(cell) >= _LEAST_BASE64 or (cell.startswith(_BEGINNINGS) and "." not in cell)
