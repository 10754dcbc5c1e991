"""S2: an image seen at several sizes by the same tower, its features side by side on channels.

Source:
    BAAI-DCAI/Bunny@08273ac (bunny/model/multimodal_encoder/siglip); Shi et al., "When Do We Not Need Larger Vision
    Models?", arXiv 2403.13043.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

Encode = Callable[[torch.Tensor], list[torch.Tensor]]


def features(pixels: torch.Tensor, scales: Sequence[int], size: int, encode: Encode) -> list[torch.Tensor]:
    """Features of every layer, with the scales one after another on channels.

    Args:
        pixels: at the largest scale.
        size: edge of the square that the tower itself takes.
        encode: the tower at its own size, one [N, P, D] per layer, without class token.

    Shape:
        pixels [N, 3, scales[-1] * size, scales[-1] * size]; result: one [N, P, D * len(scales)] per layer
    """
    at_scales = [_at_scale(pixels, scale, size, encode) for scale in scales]
    return [torch.cat(of_layer, dim=-1) for of_layer in zip(*at_scales, strict=True)]


def enlarge(preprocessor: dict[str, Any], size: int) -> dict[str, Any]:
    """The same preparation of images, ending at a larger square."""
    sizes = {key: _resized(preprocessor[key], size) for key in ("size", "crop_size") if key in preprocessor}
    return preprocessor | sizes


def _resized(value: Any, size: int) -> Any:
    return dict.fromkeys(value, size) if isinstance(value, dict) else size


def _at_scale(pixels: torch.Tensor, scale: int, size: int, encode: Encode) -> list[torch.Tensor]:
    """Resizes, cuts into `scale` x `scale` squares, encodes each, joins the maps and averages them to one square's."""
    edge = scale * size
    # fp32 between, since bicubic and area means in half precision lose what the scales are for.
    resized = F.interpolate(pixels.float(), size=(edge, edge), mode="bicubic").to(pixels.dtype)
    n = len(pixels)
    cut = resized.unflatten(3, (scale, size)).unflatten(2, (scale, size))  # [N, 3, row, y, column, x]
    squares = cut.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)  # row-major, all images of one place together
    return [_joined(found, scale, n) for found in encode(squares)]


def _joined(found: torch.Tensor, scale: int, n: int) -> torch.Tensor:
    side = round(found.shape[1] ** 0.5)
    maps = found.unflatten(1, (side, side)).unflatten(0, (scale, scale, n))  # [row, column, N, y, x, D]
    whole = maps.permute(2, 5, 0, 3, 1, 4).flatten(4, 5).flatten(2, 3)  # [N, D, row y, column x]
    mean = F.interpolate(whole.float(), size=(side, side), mode="area").to(found.dtype)
    return mean.flatten(2).transpose(1, 2)  # [N, y x, D]
