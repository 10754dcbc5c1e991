"""What every connector is."""

from __future__ import annotations

import torch
from torch import nn


class Connector(nn.Module):
    """Turns tower features into rows of the LLM's embedding space.

    A subclass takes `vision_dim` (channels of all requested layers together) and `llm_dim` besides its own arguments;
    both are supplied when it is built.
    """

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Joins the requested layers of the tower.

        Shape:
            layers: each [N, P, Dv]; result [N, T, Dh]
        """
        raise NotImplementedError

    def tokens(self, n_patches: int) -> int:
        """How many rows come out for so many patches; one for each unless a connector says otherwise."""
        return n_patches
