"""No connector: features of the LLM's own width go in as they are."""

from __future__ import annotations

import torch

from vlmrun.errors import ConfigError
from vlmrun.model.connectors.base import Connector


class Identity(Connector):
    """Hands the features on; it has no parameters, so `tune.connector` must be freeze."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        if vision_dim != llm_dim:
            raise ConfigError(
                f"features of width {vision_dim} do not fit an LLM of width {llm_dim} without a connector",
                "model.connector",
                "model/connector=linear",
            )

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates the tower's layers on channels."""
        return torch.cat(layers, dim=-1)
