"""What every vision tower is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Tower(nn.Module):
    """Turns pictures into patch features.

    Attributes:
        hidden_dim: channels of all requested layers together.
        n_patches: features per picture.
        image_size: pixels along an edge of the input.
        preprocessor: how pictures are made ready, as in `preprocessor_config.json`.
        source: the folder the weights came from; None when they were made at random.
    """

    hidden_dim: int
    n_patches: int
    image_size: int
    preprocessor: dict[str, Any]
    source: Path | None = None

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of every requested layer.

        Shape:
            pixels [N, 3, H, W]; result: one [N, P, Dv] per layer
        """
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which pictures are cast to."""
        return next(self.parameters()).dtype

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
