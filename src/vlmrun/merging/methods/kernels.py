"""The passes over a slice that torch has no operation for: compiled by numba where that is installed, else in torch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from vlmrun import logs
from vlmrun.merging.methods import compiled, plain
from vlmrun.merging.methods.numbers import Array

log = logs.get(__name__)

INSTALL = "pip install 'vlmrun-trainer[fast]'"


class Kernels(Protocol):
    """`compiled` or `plain`; the former says what the arguments are. Results are the same bit for bit."""

    def change(self, model: Array, base: Array, delta: Array) -> None:
        """model - base."""

    def count(self, model: Array, base: Array, counts: Array) -> None:
        """Counts the magnitudes of changes by their upper bits."""

    def count_between(self, model: Array, base: Array, low: int, counts: Array) -> int:
        """Counts the magnitudes of changes one by one whose bits are `low` or somewhat above it."""

    def choose(self, values: Array, choice: Array, kept: bool) -> None:
        """Multiplies by zero what is not chosen, or what is."""

    def mix(  # noqa: PLR0913 -- one pass over everything
        self,
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
        """base + scale * sum(weight * change), of every element only the changes of the elected sign."""


@cache
def kernels() -> Kernels:
    """What passes over slices here; numba is loaded by the first call, not by an import of this module."""
    if find_spec("numba") is None:
        log.info("averages with a base take half the time with numba: %s", INSTALL)
        return plain
    try:
        compiled.compile_loops()
    except ImportError as error:  # it refuses versions of numpy that it does not know
        log.warning("numba cannot be loaded (%s); averages with a base take twice the time", error)
        return plain
    return compiled
