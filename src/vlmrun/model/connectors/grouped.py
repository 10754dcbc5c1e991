"""Four neighbouring tokens become one: Bunny's `vanilla` and `minigpt`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vlmrun.arch import projectors as arch
from vlmrun.model.connectors.base import Connector


class Grouped(Connector):
    """One linear layer over four consecutive tokens side by side.

    Args:
        order: `channel` puts the four values of each channel next to each other (vanilla), `token` the four tokens
            one after another (minigpt).

    Source:
        BAAI-DCAI/Bunny@08273ac bunny/model/multimodal_projector/builder.py
    """

    ARITHMETIC = arch.Grouped
    arithmetic: arch.Grouped

    def __init__(self, vision_dim: int, llm_dim: int, order: Literal["channel", "token"]) -> None:
        super().__init__(order=order)
        self.order = order
        self.linear = nn.Linear(vision_dim * arch.Grouped.GROUP, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Groups and projects."""
        features = torch.cat(layers, dim=-1)  # [N, P, Dv]
        groups = features.unflatten(1, (self.tokens(features.shape[1]), arch.Grouped.GROUP))  # [N, T, 4, Dv]
        if self.order == "channel":
            groups = groups.transpose(2, 3)  # [N, T, Dv, 4]
        return self.linear(groups.flatten(2))  # [N, T, 4 Dv] -> [N, T, Dh]
