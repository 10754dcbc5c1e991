"""What every connector is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from vlmrun.errors import ConfigError


class Connector(nn.Module):
    """Turns tower features into rows of the LLM's embedding space.

    A subclass takes `vision_dim` (channels of all requested layers together) and `llm_dim` besides its own arguments;
    both are supplied when it is built.

    Attributes:
        ADAPTIVE: knows what to do with pictures of different shapes: `forward(layers, grids)`, where features behind a
            picture's own rows x columns are padding.
        UPSTREAM: first part of a name behind `mm_projector.` in an original checkpoint -> first part of ours; the
            longest that fits counts.
    """

    ADAPTIVE: ClassVar[bool] = False
    UPSTREAM: ClassVar[Mapping[str, str]] = {"": ""}

    @classmethod
    def wanted_layers(cls, n_layers: int, **arguments: Any) -> list[int] | None:
        """The tower's layers that this connector needs, if it needs certain ones; None: those of model.tower.layers.

        A connector that returns some is used with `model.tower.layers: null`, and its `vision_dim` is the width of
        one layer.

        Args:
            n_layers: how many blocks the tower has; 0 is the input of the first.
            arguments: those in the connector's YAML.
        """
        return None

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Joins the requested layers of the tower.

        Shape:
            layers: each [N, P, Dv]; result [N, T, Dh]
        """
        raise NotImplementedError

    def tokens(self, n_patches: int) -> int:
        """How many rows come out for so many patches; one for each unless a connector says otherwise."""
        return n_patches


def side_of(n_patches: int, name: str) -> int:
    """Edge of the square map that the patches form."""
    side: int = round(n_patches**0.5)
    if side * side != n_patches:
        raise ConfigError(
            f"{name} needs a square map of patches, the tower gives {n_patches}",
            "model.connector",
            "feature: patch, which leaves the class token out, or another connector",
        )
    return side
