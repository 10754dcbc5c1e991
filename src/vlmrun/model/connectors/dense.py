"""DenseConnector: shallow layers of the tower beside the usual one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from vlmrun.errors import ConfigError, suggest
from vlmrun.model.connectors.base import Connector
from vlmrun.model.connectors.mlp import STACKED_UPSTREAM, stacked

KINDS = ("sti", "sci", "dci")
_BASE = -2  # the layer LLaVA selects
_POOL = 8


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

    UPSTREAM = STACKED_UPSTREAM

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        kind: Literal["sti", "sci", "dci"],
        depth: int = 2,
        shallow: Sequence[int] = (7, 15),
    ) -> None:
        super().__init__()
        _check_kind(kind)
        self.kind = kind
        self.n_shallow = len(shallow)
        wide = {"sti": 1, "sci": 1 + len(shallow), "dci": 3}[kind]
        self.layers = stacked(vision_dim * wide, llm_dim, depth)

    @classmethod
    def wanted_layers(  # type: ignore[override] # `kind` is required of this one
        cls, n_layers: int, *, kind: str, shallow: Sequence[int] = (7, 15), **arguments: Any
    ) -> list[int]:
        """The selected layer first, then the others in ascending order."""
        _check_kind(kind)
        return [_BASE, *(range(n_layers // 2 * 2) if kind == "dci" else shallow)]

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Joins and projects."""
        base, *others = layers
        dim = -1
        if self.kind == "sti":
            others, dim = [F.avg_pool1d(other.transpose(1, 2), _POOL).transpose(1, 2) for other in others], 1
        if self.kind == "dci":
            half = len(others) // 2
            others = [sum(part[1:], part[0]) / half for part in (others[:half], others[half:])]
        projected: torch.Tensor = self.layers(torch.cat([base, *others], dim=dim))
        return projected

    def tokens(self, n_patches: int) -> int:
        """One for each patch, and under sti the averages, of which an incomplete last one is left out."""
        if self.kind != "sti":
            return n_patches
        if n_patches < _POOL:
            raise ConfigError(f"sti averages {_POOL} patches, the tower gives {n_patches}", "model.connector", "dci")
        return n_patches + self.n_shallow * (n_patches // _POOL)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"no dense connector {kind!r}", "model.connector.kind", suggest(kind, KINDS, noun="kinds"))
