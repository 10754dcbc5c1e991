"""Images padded, fitted into a grid, and cropped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlmrun.errors import DataError


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Pastes the image into the middle of a square of its longer side; an odd row or column goes below or right."""
    side = max(image.size)
    if image.width == image.height:
        return image
    if Image.MAX_IMAGE_PIXELS is not None and side * side > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"an image of {image.width} x {image.height} pixels would grow to {side} x {side}",
            fix="crop it to a less extreme shape",
        )
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def best_grid(size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The grid that keeps most pixels of an image of this size and, of several, wastes least; ties go to the first."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=worth)


def fit_into(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as large as it goes in the middle of a black image of this size."""
    scale_x, scale_y = size[0] / image.width, size[1] / image.height
    if scale_x < scale_y:
        fitted = (size[0], min(math.ceil(image.height * scale_x), size[1]))
    else:
        fitted = (min(math.ceil(image.width * scale_y), size[0]), size[1])
    whole = Image.new("RGB", size, (0, 0, 0))
    whole.paste(image.resize(fitted), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return whole


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the middle; what is too small is surrounded with zeros."""
    _, old_height, old_width = pixels.shape
    top_pad = max(0, -(-(height - old_height) // 2))
    left_pad = max(0, -(-(width - old_width) // 2))
    if top_pad or left_pad:
        canvas = np.zeros((3, max(height, old_height), max(width, old_width)), dtype=pixels.dtype)
        canvas[:, top_pad : top_pad + old_height, left_pad : left_pad + old_width] = pixels
        pixels = canvas
    top = (old_height - height) // 2 + top_pad
    left = (old_width - width) // 2 + left_pad
    return pixels[:, top : top + height, left : left + width]
