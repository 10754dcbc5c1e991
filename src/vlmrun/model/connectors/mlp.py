"""Linear layers with exact GELU between them: LLaVA's `linear` (depth 1) and `mlp2x_gelu` (depth 2)."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from vlmrun.errors import ConfigError
from vlmrun.model.connectors.base import Connector

# `linear` stood there bare, without a number.
STACKED_UPSTREAM = {"weight": "layers.0.weight", "bias": "layers.0.bias", "": "layers."}


def stacked(
    vision_dim: int, llm_dim: int, depth: int, *, hidden: int | None = None, bias: bool = True
) -> nn.Sequential:
    """`depth` linear layers with exact GELU between them, `hidden` wide inside; null: as wide as the LLM."""
    if depth < 1:
        raise ConfigError(f"an MLP connector of depth {depth}", "model.connector.depth", "give 1 (linear) or more")
    widths = [vision_dim, *[hidden or llm_dim] * (depth - 1), llm_dim]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.GELU(), nn.Linear(before, after, bias=bias)]
    return nn.Sequential(*layers[1:])


class MLP(Connector):
    """Applies `depth` linear layers to every patch on its own.

    Source:
        LLaVA, haotian-liu/LLaVA llava/model/multimodal_projector/builder.py; state keys `layers.0`, `layers.2`, ...
        stand where its `mm_projector.0`, `mm_projector.2` stood. `hidden` and `bias` are Pai-Megatron-Patch's: 14336
        and false.
    """

    UPSTREAM = STACKED_UPSTREAM

    def __init__(
        self, vision_dim: int, llm_dim: int, depth: int = 2, hidden: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.layers = stacked(vision_dim, llm_dim, depth, hidden=hidden, bias=bias)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates the tower's layers on channels and projects them."""
        projected: torch.Tensor = self.layers(torch.cat(layers, dim=-1))
        return projected
