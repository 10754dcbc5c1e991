"""What every connector is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from vlmrun.arch.connectors import Arithmetic, made_of
from vlmrun.errors import ConfigError


class Connector(nn.Module):
    """Turns tower features into rows of the LLM's embedding space.

    A subclass takes `vision_dim` (channels of all requested layers together) and `llm_dim` besides its own arguments;
    both are supplied when it is built. Its own arguments go to `super().__init__` by name.

    Attributes:
        ARITHMETIC: how many tokens come out, which layers are wanted; made of the class's own arguments.
        UPSTREAM: first part of a name behind `mm_projector.` in an original checkpoint -> first part of ours; the
            longest that fits counts.
    """

    ARITHMETIC: ClassVar[type[Arithmetic]] = Arithmetic
    UPSTREAM: ClassVar[Mapping[str, str]] = {"": ""}

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arithmetic = made_of(self.ARITHMETIC, arguments)

    def __init_subclass__(cls) -> None:
        """Refuses what has moved: `check` and `plan` would not see it."""
        super().__init_subclass__()
        moved = [name for name in ("tokens", "wanted_layers") if name in vars(cls)]
        if moved:
            raise ConfigError(
                f"{cls.__name__} defines {' and '.join(moved)} itself, which `check` cannot see",
                f"{cls.__module__}.{cls.__name__}",
                "move it to a subclass of vlmrun.arch.connectors.Arithmetic, and name that as ARITHMETIC",
            )

    @classmethod
    def wanted_layers(cls, n_layers: int, **arguments: Any) -> list[int] | None:
        """The tower's layers that a connector with these arguments needs (`Arithmetic.wanted_layers`)."""
        return made_of(cls.ARITHMETIC, arguments).wanted_layers(n_layers)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Joins the requested layers of the tower.

        Shape:
            layers: each [N, P, Dv]; result [N, T, Dh]
        """
        raise NotImplementedError

    def tokens(self, n_patches: int) -> int:
        """How many rows come out for N patches."""
        return self.arithmetic.tokens(n_patches)
