"""Tensors that are read or made a few rows at a time, when they are asked for, and what is laid together of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from vlmrun.weights.reader import Reader
from vlmrun.weights.writer import Shape, blocks

Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Lazy:
    """A tensor of which any rows can be had; they may be a view of something and are not to be changed.

    Args:
        rows: gives [stop - start, *shape[1:]]; a scalar is one row.
    """

    shape: Shape
    dtype: torch.dtype
    rows: Rows

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    def load(self) -> Tensor:
        """The whole."""
        return self.rows(0, len(self)).reshape(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """All rows, as many at a time as are worked on."""
        return (self.rows(start, stop) for start, stop in blocks(self.shape))

    def flat(self, start: int, stop: int) -> Tensor:
        """Elements in memory order."""
        width = max(1, math.prod(self.shape[1:]))
        first = start // width
        found = self.rows(first, -(-stop // width)).reshape(-1)
        return found[start - first * width : stop - first * width]

    def to(self, dtype: torch.dtype | None) -> Lazy:
        """The same in another type; whole numbers stay as they are."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, rows=lambda start, stop: self.rows(start, stop).to(dtype))

    def between(self, first: int, last: int) -> Lazy:
        """Some of its rows."""
        shape = (last - first, *self.shape[1:])
        return replace(self, shape=shape, rows=lambda start, stop: self.rows(first + start, first + stop))

    def columns(self, first: int, last: int) -> Lazy:
        """Some of the columns of a matrix."""
        shape = (len(self), last - first, *self.shape[2:])
        return replace(self, shape=shape, rows=lambda start, stop: self.rows(start, stop)[:, first:last])

    def view(self, shape: Shape) -> Lazy:
        """The same elements in another shape."""
        width = math.prod(shape[1:])

        def rows(start: int, stop: int) -> Tensor:
            return self.flat(start * width, stop * width).reshape(stop - start, *shape[1:])

        return replace(self, shape=shape, rows=rows)


def lazy(reader: Reader, name: str) -> Lazy:
    """One tensor of a reader."""
    return Lazy(reader.shape(name), reader.dtype(name), partial(reader.rows, name))


def made(tensor: Tensor) -> Lazy:
    """One that is in memory, or mapped, already."""
    rows = tensor if tensor.dim() else tensor.view(1)
    return Lazy(tuple(tensor.shape), tensor.dtype, lambda start, stop: rows[start:stop])


def whole(shape: Shape, dtype: torch.dtype, make: Callable[[], Tensor]) -> Lazy:
    """One that can only be made as a whole: it is made with its first row, and let go behind its last."""
    held: list[Tensor] = []
    making = threading.Lock()
    n_rows = shape[0] if shape else 1

    def rows(start: int, stop: int) -> Tensor:
        with making:
            if not held:
                held.append(make().reshape(n_rows, *shape[1:]))
            found = held[0][start:stop]
            if stop >= n_rows:
                held.clear()
        return found

    return Lazy(shape, dtype, rows)


def zeros(shape: Shape, dtype: torch.dtype) -> Lazy:
    """Nothing but zeros."""
    return Lazy(shape, dtype, lambda start, stop: torch.zeros(stop - start, *shape[1:], dtype=dtype))


def stack(parts: Sequence[Lazy]) -> Lazy:
    """One below the other."""
    ends = list(accumulate(len(part) for part in parts))

    def rows(start: int, stop: int) -> Tensor:
        found = []
        for part, end in zip(parts, ends, strict=True):
            begin = end - len(part)
            if start < end and stop > begin:
                found.append(part.rows(max(start - begin, 0), min(stop - begin, len(part))))
        if not found:
            return parts[0].rows(0, 0)
        return found[0] if len(found) == 1 else torch.cat(found)

    return replace(parts[0], shape=(ends[-1], *parts[0].shape[1:]), rows=rows)


def beside(parts: Sequence[Lazy]) -> Lazy:
    """Matrices of equally many rows, one beside the other."""
    first = parts[0]
    shape = (len(first), sum(part.shape[1] for part in parts), *first.shape[2:])

    def rows(start: int, stop: int) -> Tensor:
        return torch.cat([part.rows(start, stop) for part in parts], dim=1)

    return first if len(parts) == 1 else replace(first, shape=shape, rows=rows)
