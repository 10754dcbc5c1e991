"""Four neighbouring tokens become one: Bunny's `vanilla` and `minigpt`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vlmrun.errors import ConfigError
from vlmrun.model.connectors.base import Connector

_GROUP = 4


class Grouped(Connector):
    """One linear layer over four consecutive tokens side by side.

    Args:
        order: `channel` puts the four values of each channel next to each other (vanilla), `token` the four tokens
            one after another (minigpt).

    Source:
        BAAI-DCAI/Bunny@08273ac bunny/model/multimodal_projector/builder.py
    """

    def __init__(self, vision_dim: int, llm_dim: int, order: Literal["channel", "token"]) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(vision_dim * _GROUP, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Groups and projects."""
        features = torch.cat(layers, dim=-1)
        groups = features.unflatten(1, (self.tokens(features.shape[1]), _GROUP))
        if self.order == "channel":
            groups = groups.transpose(2, 3)
        projected: torch.Tensor = self.linear(groups.flatten(2))
        return projected

    def tokens(self, n_patches: int) -> int:
        """A quarter of the patches."""
        if n_patches % _GROUP:
            raise ConfigError(
                f"{n_patches} patches cannot be taken {_GROUP} at a time",
                "model.connector",
                "a tower whose patches divide by 4, or another connector",
            )
        return n_patches // _GROUP
