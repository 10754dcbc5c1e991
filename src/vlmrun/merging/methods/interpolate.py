"""Methods that need no base: the weighted mean, and the way along a great circle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmrun.merging.methods.blocks import Source

_COLLINEAR = 0.9995  # beyond this cosine the arc is a line, and its formula divides by almost nothing


def linear(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """sum(w m), rounded once; what is equal in all models stays so bit for bit.

    Sums are taken in fp64; of two models in 16 bits in fp32, in half the time. The order of the models does not show in
    any bit: of several terms the smallest goes first, whichever model it is of.
    Source: Model soups, arXiv:2203.05482
    """
    keeps = math.isclose(sum(weights), 1.0, abs_tol=1e-6)
    for piece in source:
        yield piece.models[0] if piece.same and keeps else _mean(piece.models, weights)


def _mean(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    pair = len(models) == 2 and all(model.dtype in (torch.bfloat16, torch.float16) for model in models)
    dtype = torch.float32 if pair else torch.float64
    total, *others = _sorted(model.to(dtype).mul_(weight) for weight, model in zip(weights, models, strict=True))
    for other in others:
        total += other
    return total


def _sorted(terms: Iterable[Tensor]) -> list[Tensor]:
    """The same numbers at every place, from the smallest to the largest; of two the sum needs no order."""
    found = list(terms)
    for last in range(len(found) - 1, 0, -1) if len(found) > 2 else ():
        for place in range(last):
            one, other = found[place : place + 2]
            found[place : place + 2] = torch.minimum(one, other), torch.maximum(one, other)
    return found


def slerp(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """From the first model (weights 1, 0) to the second (0, 1), the whole tensor taken as one vector.

    Two looks: the angle first. Nearly collinear tensors are interpolated linearly.
    Source: Shoemake 1985, "Animating rotation with quaternion curves"
    """
    dot = first = second = 0.0
    for piece in source:
        a, b = (model.double() for model in piece.models)
        dot, first, second = dot + float(a @ b), first + float(a @ a), second + float(b @ b)
    lengths = math.sqrt(first) * math.sqrt(second)
    cosine = max(-1.0, min(1.0, dot / lengths)) if lengths else 1.0
    if abs(cosine) > _COLLINEAR:
        yield from linear(source, weights, method)
        return
    angle = math.acos(cosine)
    factors = [math.sin(weight * angle) / math.sin(angle) for weight in weights]
    yield from linear(source, factors, method)
