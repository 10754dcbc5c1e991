"""Linear layers with exact GELU between them: LLaVA's `linear` (depth 1) and `mlp2x_gelu` (depth 2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
        stand where its `mm_projector.0`, `mm_projector.2` stood. `hidden`, `bias` and `init_std` are
        Pai-Megatron-Patch's: 14336, false, and 0.014 with 0.014 / sqrt(64) for the last layer.

    Args:
        hidden: width between the layers; None: the LLM's.
        init_std: of the normal distribution each layer's weights are drawn from; None: as torch draws them.
    """

    UPSTREAM = STACKED_UPSTREAM

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        depth: int = 2,
        hidden: int | None = None,
        bias: bool = True,
        init_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.layers = stacked(vision_dim, llm_dim, depth, hidden=hidden, bias=bias)
        if init_std is not None:
            self._draw(init_std)

    def _draw(self, init_std: Sequence[float]) -> None:
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        if len(init_std) != len(linear):
            raise ConfigError(
                f"{len(init_std)} deviations for {len(linear)} layers", "model.connector.init_std", "one for each layer"
            )
        for layer, std in zip(linear, init_std, strict=True):
            nn.init.normal_(layer.weight, std=std)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates the tower's layers on channels and projects them."""
        return self.layers(torch.cat(layers, dim=-1))
