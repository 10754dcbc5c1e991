"""Tensors worked on a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from operator import methodcaller

import torch

SLICE = 1 << 19  # elements of a tensor worked on at a time: many for each word of Python, few for a core's cache
Shape = tuple[int, ...]


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of every block of a tensor that is worked on at a time; a scalar is one row."""
    n_rows, step = (shape[0] if shape else 1), max(1, SLICE // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def raw(piece: torch.Tensor) -> memoryview:
    """The bytes of a tensor in memory order, as a file has them."""
    flat = piece.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def cast(pieces: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The same pieces in another type; none is held on to while the next one is made."""
    return map(methodcaller("to", dtype), pieces)
