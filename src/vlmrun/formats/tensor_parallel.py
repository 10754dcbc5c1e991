"""How Megatron-Core lays a layer's tensors together and cuts them for tensor-parallel ranks, and the way back.

Each rule is a pair of pure functions: `fuse` makes Megatron's whole tensor of ours, `cut` the pieces of the ranks;
`join` and `part` undo them. Tensors are `Lazy`: nothing is read before rows of the result are asked for.

Source: the specification, part B3.1 (checked there against Megatron-Core 0.16.1's forward)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlmrun.weights.lazy import Lazy, beside, stack, zeros


@dataclass(frozen=True)
class Same:
    """Every rank has the whole."""

    def fuse(self, ours: Sequence[Lazy]) -> Lazy:
        """One tensor, as it is."""
        return ours[0]

    def cut(self, whole: Lazy, n: int) -> list[Lazy]:
        """The whole, for every rank."""
        return [whole] * n

    def join(self, pieces: Sequence[Lazy]) -> Lazy:
        """The first rank's."""
        return pieces[0]

    def part(self, whole: Lazy) -> list[Lazy]:
        """One tensor, as it is."""
        return [whole]


@dataclass(frozen=True)
class Along(Same):
    """Cut evenly along a dimension: 0 for what a rank computes of the outputs, 1 for what it reads of the inputs."""

    dim: int

    def cut(self, whole: Lazy, n: int) -> list[Lazy]:
        """Even pieces."""
        if self.dim == 0:
            return _shares(whole, n)
        share = whole.shape[1] // n
        return [whole.columns(first, first + share) for first in range(0, whole.shape[1], share)]

    def join(self, pieces: Sequence[Lazy]) -> Lazy:
        """All of them, one after another."""
        return stack(pieces) if self.dim == 0 else beside(pieces)


@dataclass(frozen=True)
class Vocabulary(Along):
    """Rows of a vocabulary, filled with zeros up to a multiple of 128 for every rank.

    Args:
        rows: how many there really are.
    """

    dim: int = 0
    rows: int = 0

    def cut(self, whole: Lazy, n: int) -> list[Lazy]:
        """Even pieces of the filled matrix."""
        filling = zeros((-len(whole) % (128 * n), *whole.shape[1:]), whole.dtype)
        return _shares(stack([whole, filling]), n)

    def part(self, whole: Lazy) -> list[Lazy]:
        """Without the filling."""
        return [whole.between(0, self.rows)]


@dataclass(frozen=True)
class Heads(Along):
    """Queries, key and value of a group of heads after one another, group by group; a rank has whole groups.

    Args:
        groups: key and value heads.
        width: rows of a head.
    """

    dim: int = 0
    groups: int = 1
    width: int = 1

    def fuse(self, ours: Sequence[Lazy]) -> Lazy:
        """Of query, key and value: [its queries; its key; its value] for each group."""
        by_group = zip(*(_shares(tensor, self.groups) for tensor in ours), strict=True)
        return stack([part for group in by_group for part in group])

    def part(self, whole: Lazy) -> list[Lazy]:
        """Query, key and value."""
        n = len(whole) // self.groups
        borders = (0, n - 2 * self.width, n - self.width, n)
        groups = _shares(whole, self.groups)
        return [stack([group.between(*span) for group in groups]) for span in pairwise(borders)]


@dataclass(frozen=True)
class Gated(Same):
    """Gate and up projections on top of each other, on every rank its share of both: not a plain cut of the whole."""

    def fuse(self, ours: Sequence[Lazy]) -> Lazy:
        """[gate; up]"""
        return stack(ours)

    def cut(self, whole: Lazy, n: int) -> list[Lazy]:
        """[gate of the rank; up of the rank]"""
        gates, ups = (_shares(half, n) for half in _shares(whole, 2))
        return [stack(pair) for pair in zip(gates, ups, strict=True)]

    def join(self, pieces: Sequence[Lazy]) -> Lazy:
        """[all gates; all ups]"""
        halves = [_shares(piece, 2) for piece in pieces]
        return stack([half[0] for half in halves] + [half[1] for half in halves])

    def part(self, whole: Lazy) -> list[Lazy]:
        """Gate and up."""
        return _shares(whole, 2)


def _shares(whole: Lazy, n: int) -> list[Lazy]:
    """The rows in n equal parts."""
    share = len(whole) // n
    return [whole.between(first, first + share) for first in range(0, n * share, share)]
