"""Ways to make one tensor of several. Each is a function of a tensor's slices, whatever file they come from.

A method yields the result slice by slice, in fp32 or fp64; the caller rounds it. Those that must know something of a
whole tensor first (an angle, the size of its k-th largest change) look at it several times and keep a few numbers.
Which function a method is, its node of the configuration says (`config/schema/average.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import cast

from torch import Tensor

from vlmrun import build
from vlmrun.config.schema import MethodNode
from vlmrun.errors import ConfigError
from vlmrun.merging.methods.blocks import Source

Method = Callable[[Source, Sequence[float], MethodNode], Iterator[Tensor]]


def combine(source: Source, weights: Sequence[float], method: MethodNode) -> Iterator[Tensor]:
    """The slices of one tensor made of several models'.

    Args:
        weights: one for each model.
        method: a node of `config.schema` such as `Linear` or `Ties`, or a plugin's.
    """
    return _function(method.made_by or f"{method.name}.combine")(source, weights, method)


@cache
def _function(dotted: str) -> Method:
    module, _, name = dotted.rpartition(".")
    found = getattr(build.module(module, "method.name"), name, None)
    if not callable(found):
        raise ConfigError(
            f"{module} has no function {name!r}", "method.name", f"define {name}(source, weights, method)"
        )
    return cast(Method, found)
