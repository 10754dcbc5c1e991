"""From logits to the number that is minimised.

Two definitions, chosen by `stage.loss`:

- `token_mean`: the mean over every supervised token of the update, whatever micro batch or rank it lies in. Cutting the
  batch differently changes nothing.
- `micro_mean`: the mean over micro batches of each one's own mean, as the published LLaVA recipes trained. A short
  answer weighs as much as a long one, so the cut matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

IGNORE = -100


def count(labels: Tensor) -> int:
    """Supervised tokens of a batch: the first position of a row is never predicted."""
    return int((labels[:, 1:] != IGNORE).sum())


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each supervised token, in fp32.

    Shape:
        logits [B,L,V], labels [B,L] -> [n_supervised]; row b, position t predicts labels[b, t+1].
    """
    targets = labels[:, 1:]
    kept = targets != IGNORE
    # Choosing rows first keeps the fp32 copy of the logits as small as the answers, not as large as the prompts.
    return torch.nn.functional.cross_entropy(logits[:, :-1][kept].float(), targets[kept], reduction="none")


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

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss to run backward for one micro batch.

        The engine divides by the accumulation and averages over ranks; the factors here undo that where the definition
        asks for another divisor. A micro batch without supervised tokens contributes nothing, but keeps its graph, so
        that every rank runs the same backward.
        """
        losses = token_losses(logits, labels)
        if losses.numel() == 0:
            return logits.sum() * 0.0
        if self.kind == "micro_mean":
            loss = losses.mean()
            self.total = self.total + loss.detach().double()
            return loss
        total = losses.sum()
        self.total = self.total + total.detach().double()
        return total * (self.n_slots / self.n_tokens)

    @property
    def n_units(self) -> int:
        """What this rank adds to the divisor of the reported loss."""
        return sum(self.counts) if self.kind == "token_mean" else sum(n > 0 for n in self.counts)
