"""The k largest magnitudes of a tensor that is only seen slice by slice, exactly.

The bits of a non-negative fp32 number, read as a whole number, have the number's order. Two looks count them: the
upper bits first, then the lower bits of those that share the deciding upper bits. Among equal magnitudes the ones that
come first are taken, so a choice does not depend on how a tensor is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LOW_BITS = 15
_HIGH = 1 << 16
_LOW = 1 << _LOW_BITS
_INFINITE = 0x7F800000  # the bits of infinity; those beyond are no numbers


@dataclass
class Largest:
    """Chooses the k largest, slice after slice: all above `bits`, and the first `quota` of those equal to it.

    Args:
        equal: how many are equal to it.
    """

    bits: int
    quota: int
    equal: int

    def keep(self, values: Tensor) -> Tensor:
        """The next slice with zeros for what is not chosen; `values` may be changed."""
        if self.bits > _INFINITE:
            return values.mul_(self.mask(values))
        if 0 < self.quota < self.equal:
            n = int(np.count_nonzero(_bits(values).numpy() == self.bits))
            if n > self.quota:
                return values.mul_(self.mask(values))
            self.quota, self.equal = self.quota - n, self.equal - n  # all of this slice
            return _at_least(values, self.bits)
        return _at_least(values, self.bits if self.quota else self.bits + 1)

    def mask(self, values: Tensor) -> Tensor:
        """Which elements of the next slice are chosen."""
        held = _bits(values)
        if self.quota == self.equal:
            return held >= self.bits
        if self.quota == 0:
            return held > self.bits
        equal = held == self.bits
        n = int(equal.sum())
        if n > self.quota:
            equal &= equal.cumsum(0) <= self.quota
        self.quota, self.equal = self.quota - min(n, self.quota), self.equal - n
        return equal.logical_or_(held > self.bits)


def largest(look: Callable[[], Iterator[Sequence[Tensor]]], counts: Sequence[Sequence[int]]) -> list[list[Largest]]:
    """For several tensors at once, how to choose their k largest magnitudes.

    Args:
        look: gives slices of all tensors, each time from the beginning.
        counts: of every tensor the k that are asked for, each at most its size.
    """
    upper = torch.zeros(len(counts), _HIGH, dtype=torch.int64)
    for values in look():
        for place, value in enumerate(values):
            upper[place] += torch.bincount(_bits(value) >> _LOW_BITS, minlength=_HIGH)
    bins = [[_reach(upper[place], k) for k in ks] for place, ks in enumerate(counts)]
    lower = {(place, high): torch.zeros(_LOW, dtype=torch.int64) for place, row in enumerate(bins) for high, _ in row}
    for values in look():
        for place, high in lower:
            held = _bits(values[place]).numpy()  # which chooses elements in a fifth of torch's time
            inside = held[held >> _LOW_BITS == high]
            lower[place, high] += torch.bincount(torch.from_numpy(inside & (_LOW - 1)), minlength=_LOW)
    found: list[list[Largest]] = []
    for place, row in enumerate(bins):
        found.append([])
        for high, rest in row:
            counts_here = lower[place, high]
            low, quota = _reach(counts_here, rest)
            found[-1].append(Largest((high << _LOW_BITS) + low, quota, int(counts_here[low])))
    return found


def _at_least(values: Tensor, bits: int) -> Tensor:
    """Zeros instead of everything smaller. One pass in floats: choosing by a mask takes ten times as long."""
    if bits == 0:
        return values
    below = torch.tensor(bits - 1, dtype=torch.int32).view(torch.float32)
    return torch.nn.functional.hardshrink(values, float(below))


def _bits(values: Tensor) -> Tensor:
    return values.float().abs().view(torch.int32)


def _reach(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many of the k lie in it."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, torch.tensor(max(k, 1))))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, k - above
