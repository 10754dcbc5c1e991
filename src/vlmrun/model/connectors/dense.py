"""DenseConnector: shallow layers of the tower beside the usual one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from vlmrun.arch import projectors as arch
from vlmrun.model.connectors.base import Connector
from vlmrun.model.connectors.mlp import STACKED_UPSTREAM, stacked


class Dense(Connector):
    """Joins shallow layers with the selected one without parameters, then projects as an MLP.

    `sti` adds 8-fold averages of two shallow layers as further tokens, `sci` the layers themselves as further channels,
    `dci` the means of the lower and the upper half of the layers as further channels. Of a tower with n blocks, the
    halves are hidden states 0 to n//2-1 and n//2 to 2(n//2)-1: 0-11 and 12-23 for CLIP-L, 0-12 and 13-25 for
    SigLIP-so400m, as published for both.

    Args:
        vision_dim: channels of one layer.
        shallow: layers that sti and sci take beside the selected one.

    Source:
        HJYao00/DenseConnector@0f8936c4 llava/model/multimodal_projector/builder.py
    """

    ARITHMETIC = arch.Dense
    UPSTREAM = STACKED_UPSTREAM
    arithmetic: arch.Dense

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        kind: Literal["sti", "sci", "dci"],
        depth: int = 2,
        shallow: Sequence[int] = (7, 15),
    ) -> None:
        super().__init__(kind=kind, depth=depth, shallow=shallow)
        self.layers = stacked(self.arithmetic.mlp, self.arithmetic.joined(vision_dim), llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Joins and projects."""
        base, *others = layers  # each [N, P, Dv]
        if self.arithmetic.kind == "sti":
            # [N, P, Dv] -> [N, Dv, P] -> [N, Dv, P // 8] -> [N, P // 8, Dv]
            pooled = [F.avg_pool1d(other.transpose(1, 2), self.arithmetic.POOL).transpose(1, 2) for other in others]
            return self.layers(torch.cat([base, *pooled], dim=1))  # [N, P + 2 (P // 8), Dh]
        if self.arithmetic.kind == "dci":
            half = len(others) // 2
            # A running sum, so that no stack of half the tower's layers is held. Each [N, P, Dv].
            others = [sum(part[1:], part[0]) / half for part in (others[:half], others[half:])]
        return self.layers(torch.cat([base, *others], dim=-1))  # [N, P, 3 Dv] -> [N, P, Dh]
