"""Linear layers with exact GELU between them: LLaVA's `linear` (depth 1) and `mlp2x_gelu` (depth 2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from vlmrun.arch import projectors as arch
from vlmrun.model.connectors.base import Connector

# `linear` stood there bare, without a number.
STACKED_UPSTREAM = {"weight": "layers.0.weight", "bias": "layers.0.bias", "": "layers."}


def stacked(mlp: arch.MLP, vision_dim: int, llm_dim: int) -> nn.Sequential:
    """Linear layers with exact GELU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(mlp.widths(vision_dim, llm_dim)):
        layers += [nn.GELU(), nn.Linear(before, after, bias=mlp.bias)]
    return nn.Sequential(*layers[1:])


class MLP(Connector):
    """Applies `depth` linear layers to every patch on its own.

    Source:
        LLaVA, haotian-liu/LLaVA llava/model/multimodal_projector/builder.py; state keys `layers.0`, `layers.2`, ...
        stand where its `mm_projector.0`, `mm_projector.2` stood. `hidden`, `bias` and `init_std` are
        Pai-Megatron-Patch's: 14336, false, and 0.014 with 0.014 / sqrt(64) for the last layer.

    Args:
        hidden: width between the layers; None: the LLM's.
        init_std: of the normal distribution each layer's weights are drawn from; None: as torch draws them.
    """

    ARITHMETIC = arch.MLP
    UPSTREAM = STACKED_UPSTREAM
    arithmetic: arch.MLP

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        depth: int = 2,
        hidden: int | None = None,
        bias: bool = True,
        init_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(depth=depth, hidden=hidden, bias=bias, init_std=init_std)
        self.layers = stacked(self.arithmetic, vision_dim, llm_dim)
        if init_std is not None:
            linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
            for layer, std in zip(linear, init_std, strict=True):
                nn.init.normal_(layer.weight, std=std)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates the tower's layers on channels and projects them."""
        features = torch.cat(layers, dim=-1)  # [N, P, Dv]
        projected: torch.Tensor = self.layers(features)  # [N, P, Dh]
        return projected
