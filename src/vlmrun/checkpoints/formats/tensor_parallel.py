"""How Megatron-Core lays a layer's tensors together and cuts them for tensor-parallel ranks, and the way back.

Each rule is a pair of pure functions: `fuse` makes Megatron's whole tensor of ours, `cut` the pieces of the ranks;
`join` and `part` undo them.

Source: the specification, part B3.1 (checked there against Megatron-Core 0.16.1's forward)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Same:
    """Every rank has the whole."""

    def fuse(self, ours: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor, as it is."""
        return ours[0]

    def cut(self, whole: torch.Tensor, n: int) -> list[torch.Tensor]:
        """The whole, for every rank."""
        return [whole] * n

    def join(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """The first rank's."""
        return pieces[0]

    def part(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """One tensor, as it is."""
        return [whole]


@dataclass(frozen=True)
class Along(Same):
    """Cut evenly along a dimension: 0 for what a rank computes of the outputs, 1 for what it reads of the inputs."""

    dim: int

    def cut(self, whole: torch.Tensor, n: int) -> list[torch.Tensor]:
        """Even pieces."""
        return list(whole.chunk(n, self.dim))

    def join(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """All of them, one after another."""
        return torch.cat(list(pieces), self.dim)


@dataclass(frozen=True)
class Vocabulary(Along):
    """Rows of a vocabulary, filled with zeros up to a multiple of 128 for every rank.

    Args:
        rows: how many there really are.
    """

    dim: int = 0
    rows: int = 0

    def cut(self, whole: torch.Tensor, n: int) -> list[torch.Tensor]:
        """Even pieces of the filled matrix."""
        unit = 128 * n
        padded = torch.zeros(-(-len(whole) // unit) * unit, *whole.shape[1:], dtype=whole.dtype)
        padded[: len(whole)] = whole
        return super().cut(padded, n)

    def part(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Without the filling."""
        return [whole[: self.rows]]


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

    def fuse(self, ours: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of query, key and value: [its queries; its key; its value] for each group."""
        grouped = [tensor.unflatten(0, (self.groups, -1)) for tensor in ours]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def part(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value."""
        grouped = whole.unflatten(0, (self.groups, -1))
        sizes = [grouped.shape[1] - 2 * self.width, self.width, self.width]
        return [each.flatten(0, 1) for each in grouped.split(sizes, dim=1)]


@dataclass(frozen=True)
class Gated(Same):
    """Gate and up projections on top of each other, on every rank its share of both: not a plain cut of the whole."""

    def fuse(self, ours: Sequence[torch.Tensor]) -> torch.Tensor:
        """[gate; up]"""
        return torch.cat(list(ours))

    def cut(self, whole: torch.Tensor, n: int) -> list[torch.Tensor]:
        """[gate of the rank; up of the rank]"""
        gates, ups = (half.chunk(n) for half in whole.chunk(2))
        return [torch.cat(pair) for pair in zip(gates, ups, strict=True)]

    def join(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """[all gates; all ups]"""
        halves = [piece.chunk(2) for piece in pieces]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])

    def part(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Gate and up."""
        return list(whole.chunk(2))
