"""Images of any shape in one array: strips of patches, filled up with zeros. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def strips(tiles: Sequence[np.ndarray], patch: int) -> np.ndarray:
    """Images of any shape as strips one patch high, row by row, filled up with zeros to the longest.

    Shape:
        each [3, height, width] -> [n, 3, patch, patch * longest]
    """
    found = [_strip(tile, patch) for tile in tiles]
    return joined([strip[None] for strip in found])


def _strip(tile: np.ndarray, patch: int) -> np.ndarray:
    channels, height, width = tile.shape
    patches = tile.reshape(channels, height // patch, patch, width // patch, patch)
    return patches.transpose(0, 2, 1, 3, 4).reshape(channels, patch, -1)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Batches of images, [n, 3, height, width] each, as one; narrower ones are filled up with zeros."""
    width = max(part.shape[-1] for part in parts)
    return np.concatenate(
        [
            part if part.shape[-1] == width else np.pad(part, [(0, 0)] * 3 + [(0, width - part.shape[-1])])
            for part in parts
        ]
    )
