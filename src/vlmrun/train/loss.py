"""From the losses of tokens to the number that is minimised.

Two definitions, chosen by `stage.loss`:

- `token_mean`: the mean over every supervised token of the update, whatever micro batch or rank it is in. Cutting the
  batch differently changes nothing.
- `micro_mean`: the mean over micro batches of each one's own mean, as the published LLaVA recipes trained. A short
  answer weighs as much as a long one, so the cut matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor


class Window:
    """The losses of one update: `accumulation` micro batches on each of `ranks` ranks.

    Args:
        counts: supervised tokens of each of this rank's micro batches.
        n_tokens: supervised tokens of the whole update, over all ranks.
    """

    def __init__(
        self, kind: Literal["token_mean", "micro_mean"], counts: Sequence[int], n_tokens: int, ranks: int
    ) -> None:
        self.kind = kind
        self.counts = counts
        self.n_tokens = n_tokens
        self.n_slots = len(counts) * ranks
        self.total: Tensor | float = 0.0  # what `value` divides, summed over this rank's micro batches

    def add(self, loss_sum: Tensor, n_supervised: int) -> Tensor:
        """The loss to run backward for one micro batch.

        The engine divides by the accumulation and averages over ranks; the factors here undo that where the definition
        asks for another divisor. A micro batch without supervised tokens contributes nothing, but keeps its graph, so
        that every rank runs the same backward.
        """
        if n_supervised == 0:
            return loss_sum
        if self.kind == "micro_mean":
            loss_sum = loss_sum / n_supervised
        self.total = self.total + loss_sum.detach().double()
        return loss_sum * (self.n_slots / self.n_tokens) if self.kind == "token_mean" else loss_sum

    @property
    def n_units(self) -> int:
        """What this rank adds to the divisor of the reported loss."""
        return sum(self.counts) if self.kind == "token_mean" else sum(n > 0 for n in self.counts)
