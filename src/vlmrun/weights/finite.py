"""Numbers that are not finite, counted while tensors pass: weights with nan or infinity in them answer nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from vlmrun.errors import CheckpointError, Problem
from vlmrun.weights.blocks import blocks
from vlmrun.weights.reader import Reader

_SHOWN = 10
_FIX = "restore these weights, or make them again; of a conversion to fp16, whose largest number is 65504: --dtype bf16"


class Finite:
    """Counts by tensor. Several threads may look at once, each at a tensor of its own."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int | None, int]] = {}  # by tensor, then by where the piece begins
        self._adding = threading.Lock()

    def look(self, name: str, piece: torch.Tensor, start: int | None = None) -> None:
        """Takes in some elements of a tensor.

        Args:
            start: the first row, of a tensor that may be read more than once; None: every piece comes once.
        """
        n = count(piece)
        if n:
            with self._adding:
                pieces = self._found.setdefault(name, {})
                pieces[start] = n if start is not None else pieces.get(start, 0) + n

    def watched(self, name: str, pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The pieces of a tensor, each looked at before it is passed on."""
        for piece in pieces:
            self.look(name, piece)
            yield piece

    def look_at_all(self, part: str, reader: Reader) -> None:
        """Takes in a folder that is linked, not read for anything else."""
        for name in reader.names():
            for start, stop in blocks(reader.shape(name)):
                self.look(f"{part}.{name}", reader.rows(name, start, stop))

    def require(self, where: Path) -> None:
        """Ends the work when there were any.

        Raises:
            CheckpointError: listing tensors with how many of their numbers are not finite.
        """
        if not self._found:
            return
        counts = {name: sum(pieces.values()) for name, pieces in sorted(self._found.items())}
        total = sum(counts.values())
        shown = [f"{name} ({n:,})" for name, n in list(counts.items())[:_SHOWN]]
        more = f" and {len(self._found) - _SHOWN} more" if len(self._found) > _SHOWN else ""
        what = f"{total:,} weights of {len(self._found)} tensors are not finite: {', '.join(shown)}{more}"
        raise CheckpointError([Problem(what, str(where), _FIX)])


def count(values: torch.Tensor) -> int:
    """How many numbers are nan or infinite; whole numbers never are."""
    if not values.is_floating_point() or not values.numel():
        return 0
    low, high = torch.aminmax(values)  # one pass, through which a nan comes; the other way takes five
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int((~torch.isfinite(values)).sum())


def require_of(tensors: Iterable[tuple[str, torch.Tensor]], where: Path) -> None:
    """The same of tensors that are in memory.

    Raises:
        CheckpointError: as `Finite.require`.
    """
    found = Finite()
    for name, value in tensors:
        found.look(name, value)
    found.require(where)
