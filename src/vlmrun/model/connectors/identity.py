"""No connector: features of the LLM's own width go in as they are."""

from __future__ import annotations

import torch

from vlmrun.arch import projectors as arch
from vlmrun.model.connectors.base import Connector


class Identity(Connector):
    """Hands the features on; it has no parameters, so `tune.connector` must be freeze."""

    ARITHMETIC = arch.Identity

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.arithmetic.check_widths(vision_dim, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates the tower's layers on channels."""
        return torch.cat(layers, dim=-1)  # [N, P, Dh]
