"""From logits to the losses of supervised tokens."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100  # label of a position that is not supervised


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
