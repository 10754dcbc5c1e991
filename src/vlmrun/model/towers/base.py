"""What every vision tower is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from vlmrun.arch.towers import Arithmetic
from vlmrun.errors import ConfigError

Grids = Sequence[tuple[int, int]]  # rows and columns of patches in every image


class Tower(nn.Module):
    """Turns images into patch features.

    Attributes:
        ARITHMETIC: what is known of it from its YAML and config.json, without building it.
        hidden_dim: channels of all requested layers together.
        layers: the requested layers, once they are known.
        n_layers: how many there are to choose from.
        n_patches: features per image.
        image_size: pixels along an edge of the input.
        preprocessor: how images are made ready, as in `preprocessor_config.json`.
        source: the folder the weights came from; None when they were made at random.
    """

    ARITHMETIC: ClassVar[type[Arithmetic]] = Arithmetic

    hidden_dim: int
    layers: Sequence[int] = ()
    n_layers: int
    n_patches: int
    image_size: int
    preprocessor: dict[str, Any]
    source: Path | None = None

    def choose_layers(self, layers: Sequence[int]) -> None:
        """Says which layers the features are taken from, when `layers` is null and the connector asks for them."""
        raise ConfigError(
            f"{type(self).__name__} takes its layers from model.tower.layers only", "model.tower.layers", "name them"
        )

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of every requested layer.

        Shape:
            pixels [N, 3, H, W], an adaptive tower's strips [N, 3, patch, patch * longest]; result: one [N, P, Dv] per
            layer
        """
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which images are cast to."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def unused(self) -> list[nn.Parameter]:
        """Parameters that no requested layer depends on; they are never trained."""
        return []

    def config_dict(self) -> dict[str, Any]:
        """The `config.json` that goes with the weights."""
        raise NotImplementedError

    def saved_name(self, name: str) -> str:
        """Name in the tower's folder of the parameter that this module calls `name`."""
        return name

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes activations in the backward pass, where the tower knows how."""
