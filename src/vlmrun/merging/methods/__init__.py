"""Ways to make one tensor of several. Each is a function of a tensor's slices, whatever file they come from.

A method yields the result slice by slice, in fp32 or fp64; the caller rounds it. Those that must know something of a
whole tensor first (an angle, the size of its k-th largest change) look at it several times and keep a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from vlmrun.merging.methods import interpolate, task
from vlmrun.merging.methods.blocks import Source

Method = Callable[[Source, Sequence[float], Any], Iterator[Tensor]]

_BY_NAME: dict[str, Method] = {
    "linear": interpolate.linear,
    "slerp": interpolate.slerp,
    "model_stock": task.model_stock,
}


def combine(source: Source, weights: Sequence[float], method: Any) -> Iterator[Tensor]:
    """The slices of one tensor made of several models'.

    Args:
        weights: one for each model.
        method: a node of `config.schema` such as `Linear` or `Ties`.
    """
    return _BY_NAME.get(method.name, task.vectors)(source, weights, method)
