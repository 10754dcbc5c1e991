"""The passes over a slice as loops that numba compiles: each is one pass where torch takes a dozen.

They hold no lock of Python's, work on blocks that a core's first cache holds, and have no branches inside, so that the
compiler makes vectors of them. Sums and products are those of fp32 in the order written here: nothing is fused or
reordered, and `plain` gives the same bits. Until `compile_loops` is called they are Python, and numba is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np

from vlmrun.merging.methods.numbers import BY_COUNT, BY_NOBODY, BY_SUM, LOW_BITS, Array

_BLOCK = 2048  # elements
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits of an fp32 number but its sign
_NOTHING = np.float32(1e-8)
_ZERO, _ONE = np.float32(0), np.float32(1)

Loop = TypeVar("Loop", bound=Callable[..., Any])
_PYTHON: list[Callable[..., Any]] = []  # the loops as they are written


def _compiled(loop: Loop) -> Loop:
    _PYTHON.append(loop)
    return loop


@cache
def compile_loops() -> None:
    """Puts machine code in place of this module's loops; it is made at their first call and kept in numba's cache.

    Raises:
        ImportError: when numba is not installed, or does not go with the numpy that is.
    """
    import numba

    for loop in _PYTHON:  # a loop finds those that it calls here as well
        try:
            made = numba.njit(nogil=True, error_model="numpy", cache=True)(loop)
        except RuntimeError:  # neither __pycache__ nor the user's cache can be written
            made = numba.njit(nogil=True, error_model="numpy")(loop)
        globals()[loop.__name__] = made


@_compiled
def _widen(numbers: Array, into: Array) -> None:
    """One block in fp32."""
    if numbers.itemsize == 2:
        half, bits = numbers.view(np.uint16), into.view(np.uint32)
        for place in range(into.size):
            bits[place] = np.uint32(half[place]) << np.uint32(16)
    else:
        whole = numbers.view(np.float32)
        for place in range(into.size):
            into[place] = whole[place]


@_compiled
def _change(model: Array, base: Array, spare: Array, into: Array) -> None:
    """model - base of one block, which may be shorter than the room that is given."""
    origin = spare[: into.size]
    _widen(base, origin)
    _widen(model, into)
    for place in range(into.size):
        into[place] -= origin[place]


@_compiled
def change(model: Array, base: Array, delta: Array) -> None:
    """What a model changed of its base: model - base.

    Args:
        model: numbers [N], fp32, or the bits of bf16, which are the upper half of fp32's, as uint16.
        base: the same of the base.
        delta: fp32 [N], written.
    """
    spare = np.empty(_BLOCK, np.float32)
    for start in range(0, delta.size, _BLOCK):
        stop = start + _BLOCK
        _change(model[start:stop], base[start:stop], spare, delta[start:stop])


@_compiled
def count(model: Array, base: Array, counts: Array) -> None:
    """Counts the magnitudes of changes by their upper bits.

    Args:
        model: as in `change`; so is base.
        counts: whole numbers [2 ** HIGH_BITS].
    """
    spare, block = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    held = block.view(np.int32)
    for start in range(0, model.size, _BLOCK):
        stop = min(start + _BLOCK, model.size)
        _change(model[start:stop], base[start:stop], spare, block[: stop - start])
        for place in range(stop - start):
            counts[(held[place] & _MAGNITUDE) >> LOW_BITS] += 1


@_compiled
def count_between(model: Array, base: Array, low: int, counts: Array) -> int:
    """Counts the magnitudes of changes one by one whose bits are `low` or somewhat above it.

    Args:
        model: as in `change`; so is base.
        counts: whole numbers [as many as are counted].

    Returns:
        How many changes are larger than those.
    """
    spare, block = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    first, width = np.uint32(low), np.uint32(counts.size)
    held, above = block.view(np.uint32), 0
    for start in range(0, model.size, _BLOCK):
        stop = min(start + _BLOCK, model.size)
        _change(model[start:stop], base[start:stop], spare, block[: stop - start])
        larger = np.uint32(0)
        for place in range(stop - start):
            magnitude = held[place] & np.uint32(0x7FFFFFFF)
            larger += np.uint32(magnitude >= first + width)
            held[place] = magnitude - first  # those below become huge
        above += larger  # type: ignore[assignment] # numba adds to a whole number of 64 bits
        for place in range(stop - start):
            if held[place] < width:
                counts[held[place]] += 1
    return above


@_compiled
def choose(values: Array, choice: Array, kept: bool) -> None:
    """Multiplies by zero what is not chosen, or what is: magnitudes above `bits` are, and the first of the equal ones.

    Args:
        values: fp32 [N], changed.
        choice: int64 [3]: bits, how many of the equal ones are still to be chosen, and how many are still to come. The
            latter two are brought up to date.
        kept: whether the chosen ones are kept; otherwise the others are.
    """
    bits, quota, equal = choice[0], choice[1], choice[2]
    held = values.view(np.int32)
    on, off = (_ONE, _ZERO) if kept else (_ZERO, _ONE)
    here = 0
    if 0 < quota < equal:
        for place in range(held.size):
            here += (held[place] & _MAGNITUDE) == bits
    if here > quota:
        left = quota
        for place in range(held.size):
            magnitude = held[place] & _MAGNITUDE
            is_chosen = magnitude > bits or (magnitude == bits and left > 0)
            left -= magnitude == bits and left > 0
            values[place] *= on if is_chosen else off
    else:
        floor = np.int32(bits - (quota > 0))
        for place in range(held.size):
            values[place] *= on if (held[place] & _MAGNITUDE) > floor else off
    choice[1], choice[2] = max(quota - here, 0), equal - here


@_compiled
def _elect(deltas: Array, weights: Array, by: int, side: Array) -> None:
    """1 or -1 for every element of a block."""
    for place in range(side.size):
        side[place] = _ZERO
    for model in range(len(weights)):
        weight, delta = np.float32(weights[model]), deltas[model]
        if by == BY_COUNT:
            for place in range(side.size):
                product = delta[place] * weight
                side[place] += (_ONE if product > _ZERO else _ZERO) - (_ONE if product < _ZERO else _ZERO)
        elif by == BY_SUM:
            for place in range(side.size):
                side[place] += delta[place] * weight
    for place in range(side.size):
        side[place] = _ONE if side[place] >= _ZERO else -_ONE


@_compiled
def _sum(deltas: Array, weights: Array, side: Array, by: int, total: Array, share: Array) -> None:
    """Sum of the weighted changes of a block that are on the elected side, times it, and of their weights."""
    everybody = np.float32(weights.sum()) if by == BY_NOBODY else _ZERO
    for place in range(side.size):
        total[place], share[place] = _ZERO, everybody
    for model in range(len(weights)):
        weight, delta = np.float32(weights[model]), deltas[model]
        if by == BY_NOBODY:
            for place in range(side.size):
                total[place] += delta[place] * weight
        else:
            for place in range(side.size):
                product = delta[place] * weight * side[place]
                total[place] += _ZERO if product <= _ZERO else product  # NaN stays NaN
                share[place] += weight if product > _ZERO else _ZERO


@_compiled
def mix(  # noqa: PLR0913 -- one pass over everything
    models: tuple[Array, ...],
    origin: Array,
    choices: Array,
    weights: Array,
    by: int,
    normalize: bool,
    scale: np.float32,
    base: Array,
    result: Array,
) -> None:
    """base + scale * sum(weight * change), of every element only the changes of the elected sign.

    Args:
        models: as in `change`, each [N].
        origin: what they are changes of: the base, or nothing [0] when they are changes already.
        choices: of every model which changes count: int64 [models, 0 to 2, 3]. Those that the first chooses are kept,
            then those that the second chooses of these are dropped.
        weights: fp64 [models]; products take them in fp32.
        by: what elects: nothing, the sum of the weighted changes, or the sum of their signs.
        normalize: divide by the weights that went into a sum, unless these are next to nothing.
        scale: fp32.
        base: as in `change`.
        result: fp32 [N], written.
    """
    deltas, spare = np.zeros((len(models), _BLOCK), np.float32), np.empty(_BLOCK, np.float32)
    side, total, share = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(0, result.size, _BLOCK):
        end = result[start : start + _BLOCK]
        for model in range(len(models)):
            part, delta = models[model][start : start + _BLOCK], deltas[model][: end.size]
            if origin.size:
                _change(part, origin[start : start + _BLOCK], spare, delta)
            else:
                _widen(part, delta)
            for number in range(choices.shape[1]):
                choose(delta, choices[model, number], number == 0)
        _elect(deltas, weights, by, side)
        _sum(deltas, weights, side, by, total, share)
        if normalize:
            for place in range(end.size):
                total[place] /= share[place] + (_ONE if abs(share[place]) < _NOTHING else _ZERO)
        _widen(base[start : start + _BLOCK], end)
        for place in range(end.size):
            end[place] = (total[place] * side[place] + _ZERO) * scale + end[place]  # no -0
