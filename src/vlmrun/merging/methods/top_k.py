"""The k largest changes of a tensor that is only seen slice by slice, exactly.

The bits of a non-negative fp32 number, read as a whole number, have the number's order. Magnitudes are counted one by
one, but only those near the deciding one; where that is, a sample shows. Should it mislead, all are counted by
their upper bits first. Among equal magnitudes the ones that come first are taken, so a choice does not depend on how a
tensor is cut, nor on the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from vlmrun.merging.methods.blocks import Piece, Source
from vlmrun.merging.methods.kernels import kernels
from vlmrun.merging.methods.numbers import HIGH_BITS, LOW_BITS, Array, reach

_PLACES, _PLACE = 16, 1 << 14  # of a sample, and elements at each
_FEWEST = 16 * _PLACES * _PLACE  # elements of a tensor of which a sample is worth its time
_SLACK = 0.025  # how far a sample may mislead, in deviations of one element: by 1 % of all where a fifth is kept
_WIDEST = 16 << LOW_BITS  # magnitudes, at most, that are counted one by one

Bounds = list[list[tuple[int, int]]]  # for every model and k the first and last (exclusive) bits of those


def largest(source: Source, counts: Sequence[Sequence[int]]) -> Array:
    """For the changes of every model, how to choose their k largest magnitudes.

    Args:
        source: a tensor with a base.
        counts: of every model the k that are asked for, each at most the tensor's size; of all equally many.

    Returns:
        int64 [models, k, 3], as `kernels().choose` takes them.
    """
    if not source.numel:
        return np.zeros((len(counts), len(counts[0]), 3), np.int64)
    if source.numel >= _FEWEST:
        bounds = _bounds(source.spread(_PLACES, _PLACE), counts, source.numel, _SLACK)
        found = _within(source, counts, bounds)
        if found is not None:
            return found
    found = _within(source, counts, _bounds(source, counts, source.numel))
    assert found is not None
    return found


def _bounds(pieces: Iterable[Piece], counts: Sequence[Sequence[int]], total: int, slack: float = 0.0) -> Bounds:
    """Between which bits the k-th largest lie, as far as these pieces of the tensor tell."""
    upper, seen = np.zeros((len(counts), 1 << HIGH_BITS), np.int64), 0
    for piece in pieces:
        models, base = piece.numbers
        for model, row in zip(models, upper, strict=True):
            kernels().count(model, base, row)
        seen += base.size

    def bits(row: Array, k: int, slack: float) -> int:
        share = k / total
        place = round(k * seen / total + slack * math.sqrt(share * (1 - share)) * seen)
        return reach(row, min(max(place, 1), seen))[0] << LOW_BITS

    return [
        [(bits(row, k, slack), bits(row, k, -slack) + (1 << LOW_BITS)) for k in ks]
        for row, ks in zip(upper, counts, strict=True)
    ]


def _within(source: Source, counts: Sequence[Sequence[int]], bounds: Bounds) -> Array | None:
    """The choices, if every k-th largest is within its bounds."""
    if any(last - first > _WIDEST for row in bounds for first, last in row):
        return None
    dtype = np.int32 if source.numel < 1 << 31 else np.int64
    found = [[np.zeros(last - first, dtype) for first, last in row] for row in bounds]
    above = [[0] * len(row) for row in bounds]
    for piece in source:
        models, base = piece.numbers
        for place, model in enumerate(models):
            for number, (first, _) in enumerate(bounds[place]):
                above[place][number] += kernels().count_between(model, base, first, found[place][number])
    choices = np.empty((len(counts), len(counts[0]), 3), np.int64)
    for place, ks in enumerate(counts):
        for number, k in enumerate(ks):
            inside, larger = found[place][number], above[place][number]
            bits, quota = reach(inside, k - larger)
            if larger >= max(k, 1) or bits < 0:
                return None
            choices[place, number] = bounds[place][number][0] + bits, quota, inside[bits]
    return choices
