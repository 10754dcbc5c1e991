"""The passes over a slice in operations of torch, for machines without numba. `compiled` gives the same bits.

Every sum and product is an operation of its own, rounded to fp32: a fused one (`add` with `alpha`) would round once
where the loops round twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmrun.merging.methods.numbers import BY_COUNT, BY_NOBODY, HIGH_BITS, LOW_BITS, Array

_BLOCK = 1 << 16  # elements: what an operation makes stays in a core's second cache
_MAGNITUDE = 0x7FFFFFFF  # all bits of an fp32 number but its sign
_NOTHING = 1e-8


def change(model: Array, base: Array, delta: Array) -> None:
    """model - base; arguments as in `compiled.change`."""
    torch.sub(_wide(model), _wide(base), out=torch.from_numpy(delta))


def count(model: Array, base: Array, counts: Array) -> None:
    """Counts the magnitudes of changes by their upper bits; arguments as in `compiled.count`."""
    for magnitudes in _magnitudes(model, base):
        counts += torch.bincount(magnitudes >> LOW_BITS, minlength=1 << HIGH_BITS).numpy()


def count_between(model: Array, base: Array, low: int, counts: Array) -> int:
    """Counts the magnitudes whose bits are `low` or somewhat above it; arguments and result as `compiled`'s."""
    above, places = 0, [torch.empty(0, dtype=torch.int32)]
    for magnitudes in _magnitudes(model, base):
        places.append(magnitudes.sub_(low))
        above += int((places[-1] >= counts.size).sum())
        places[-1] = places[-1][(places[-1] >= 0) & (places[-1] < counts.size)]
    counts += torch.bincount(torch.cat(places), minlength=counts.size).numpy().astype(counts.dtype)
    return above


def choose(values: Array, choice: Array, kept: bool) -> None:
    """Multiplies by zero what is not chosen, or what is; arguments as in `compiled.choose`."""
    numbers = torch.from_numpy(values)
    bits, quota, equal = (int(number) for number in choice)
    magnitudes = numbers.view(torch.int32) & _MAGNITUDE
    chosen, here = magnitudes > bits - (quota > 0), 0
    if 0 < quota < equal:
        ties = magnitudes == bits
        here = int(ties.sum())
        if here > quota:
            chosen &= ~ties | (ties.cumsum(0) <= quota)
    numbers *= chosen if kept else ~chosen
    choice[1], choice[2] = max(quota - here, 0), equal - here


def mix(  # noqa: PLR0913 -- one pass over everything
    models: Sequence[Array],
    origin: Array,
    choices: Array,
    weights: Array,
    by: int,
    normalize: bool,
    scale: np.float32,
    base: Array,
    result: Array,
) -> None:
    """base + scale * sum(weight * change), of the elected sign only; arguments as in `compiled.mix`."""
    shares = [float(np.float32(weight)) for weight in weights]
    everybody = 0.0
    for weight in weights.tolist():  # in order, as the loops add
        everybody += weight
    for start in range(0, result.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        deltas = []
        for model, row in zip(models, choices if choices.size else [()] * len(models), strict=True):
            delta = _wide(model[block]) - _wide(origin[block]) if origin.size else _wide(model[block]).clone()
            for number, choice in enumerate(row):
                choose(delta.numpy(), choice, number == 0)
            deltas.append(delta)
        side = _elect(deltas, shares, by)
        if by == BY_NOBODY:
            total, share = torch.zeros_like(side), torch.full_like(side, float(np.float32(everybody)))
            for weight, delta in zip(shares, deltas, strict=True):
                total += delta.mul_(weight)
        else:
            total, share = _sum(deltas, shares, side)
        if normalize:
            total /= share + (share.abs() < _NOTHING)
        mixed = total.mul_(side).add_(0.0).mul_(float(scale))  # no -0
        torch.add(mixed, _wide(base[block]), out=torch.from_numpy(result[block]))


def _wide(numbers: Array) -> Tensor:
    """fp32 [N] of fp32, or of the bits of bf16 as uint16."""
    tensor = torch.from_numpy(numbers)
    return tensor.view(torch.bfloat16).float() if tensor.dtype == torch.uint16 else tensor


def _magnitudes(model: Array, base: Array) -> Iterator[Tensor]:
    """Bits of |model - base|, block by block: int32."""
    for start in range(0, model.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        yield (_wide(model[block]) - _wide(base[block])).view(torch.int32) & _MAGNITUDE


def _elect(deltas: Sequence[Tensor], weights: Sequence[float], by: int) -> Tensor:
    """1 or -1 for every element of a block."""
    side = torch.zeros_like(deltas[0])
    if by != BY_NOBODY:
        for weight, delta in zip(weights, deltas, strict=True):
            product = delta * weight
            side += (product > 0).float() - (product < 0).float() if by == BY_COUNT else product
    return torch.where(side >= 0, 1.0, -1.0)


def _sum(deltas: Sequence[Tensor], weights: Sequence[float], side: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the weighted changes on the elected side, times it, and of their weights."""
    total, share = torch.zeros_like(side), torch.zeros_like(side)
    for weight, delta in zip(weights, deltas, strict=True):
        product = (delta * weight).mul_(side)
        total += torch.where(product <= 0, 0.0, product)  # NaN stays NaN
        share += torch.where(product > 0, weight, 0.0)
    return total, share
