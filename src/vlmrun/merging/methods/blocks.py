"""One tensor of several models, seen slice by slice as often as a method asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlmrun.merging.methods.kernels import kernels
from vlmrun.merging.methods.numbers import Array
from vlmrun.weights.blocks import SLICE, Shape


@dataclass(frozen=True)
class Piece:
    """A slice, flat, in the models' own types; `base` only for methods that move from one model towards others."""

    models: list[Tensor]
    base: Tensor | None = None

    @cached_property
    def same(self) -> bool:
        """Whether all models, and the base, are equal here bit for bit."""
        first, *others = [*self.models, *([] if self.base is None else [self.base])]
        return all(first.dtype == other.dtype and torch.equal(first, other) for other in others)

    @cached_property
    def numbers(self) -> tuple[list[Array], Array]:
        """The models' and the base's as kernels take them: the bits of bf16 where all are that, otherwise fp32."""
        assert self.base is not None
        everything = [*self.models, self.base]
        if all(each.dtype == torch.bfloat16 for each in everything):
            *models, base = (each.view(torch.uint16).numpy() for each in everything)
        else:
            *models, base = (each.float().numpy() for each in everything)
        return models, base

    def deltas(self) -> Tensor:
        """What every model changed of the base: fp32 [models, N]."""
        models, base = self.numbers
        found = torch.empty(len(models), base.size)
        for model, delta in zip(models, found, strict=True):
            kernels().change(model, base, delta.numpy())
        return found


@dataclass
class Source:
    """A tensor as a sequence of pieces; a second look reads again, so that none has to be kept.

    Args:
        name: with its part in front, such as `llm.model.norm.weight`.
        read: first and last (exclusive) element -> piece.
        step: elements of a piece, whole rows; a result does not depend on it. None: about `stream.SLICE`.
    """

    name: str
    shape: Shape
    read: Callable[[int, int], Piece]
    step: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Elements of a row; a vector is one row."""
        return max(1, self.numel if len(self.shape) < 2 else math.prod(self.shape[1:]))

    def __iter__(self) -> Iterator[Piece]:
        step = self.step or max(1, SLICE // self.width) * self.width
        for start in range(0, self.numel, step):
            yield self.read(start, min(start + step, self.numel))

    def spread(self, places: int, size: int) -> Iterator[Piece]:
        """Pieces of `size` elements, from all over the tensor, which has more than all of them."""
        return (self.read(start, start + size) for start in range(0, self.numel - size, self.numel // places))
