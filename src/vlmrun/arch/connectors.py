"""What a connector does to numbers: image tokens, layers of the tower, sizes. Free of torch.

Every connector class names a subclass of `Arithmetic` as its `ARITHMETIC`, and computes with it; `projectors` has those
of the built-in ones. Checks and plan find it through that name (`arithmetic`), so a connector outside the package that
names one of its own is checked and planned as ours are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmrun import build
from vlmrun.arch.sizes import Connector
from vlmrun.config import derived
from vlmrun.config.schema import Target
from vlmrun.errors import ConfigError

SUPPLIED = frozenset({"vision_dim", "llm_dim"})  # arguments of a connector's class that do not come from the YAML


@dataclass(frozen=True)
class Arithmetic:
    """Of a connector that gives a token for every patch. The fields of a subclass are the arguments in the YAML.

    Attributes:
        ADAPTIVE: the connector knows what to do with images of different shapes: `forward(layers, grids)`, where
            features behind an image's own rows x columns are padding.
        TRAINABLE: it has parameters.
        LAYERS_KEY: the key that `wanted_layers` follow from.
    """

    ADAPTIVE: ClassVar[bool] = False
    TRAINABLE: ClassVar[bool] = True
    LAYERS_KEY: ClassVar[str] = "model.connector"

    def tokens(self, n_patches: int) -> int:
        """Rows that come out for N patches.

        Raises:
            ConfigError: when the connector cannot take this many.
        """
        return n_patches

    def wanted_layers(self, n_layers: int) -> list[int] | None:
        """The tower's layers that the connector needs, if it needs certain ones; None: those of model.tower.layers.

        A connector that returns some is used with `model.tower.layers: null`, and its `vision_dim` is the width of
        one layer.

        Args:
            n_layers: how many blocks the tower has; 0 is the input of the first.
        """
        return None

    def check_widths(self, vision_dim: int, llm_dim: int) -> None:
        """Raises ConfigError when the connector cannot stand between these widths."""

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector | None:
        """Its linear layers with the rows each sees; None: `plan` builds the connector without weights and asks it."""
        return None


def arithmetic(connector: Target) -> Arithmetic | None:
    """That of a connector in a YAML; None when target or arguments are wrong, which `build.check` reports.

    Of a class outside the package, the module that defines its arithmetic is imported: keep it in a file without torch
    where `check` should stay fast.

    Raises:
        ConfigError: when the arithmetic itself refuses the arguments.
    """
    target, _ = derived.connector_weights(connector)
    if build.check(target.target, target.arguments, "model.connector", SUPPLIED):
        return None
    kind = build.attribute(target.target, "ARITHMETIC", Arithmetic)
    if kind is None:
        return None
    try:
        return made_of(kind, target.arguments)
    except TypeError as error:
        name = target.target.rpartition(".")[2]
        fix = f"{kind.__module__}.{kind.__name__} takes the keys of the connector's YAML"
        raise ConfigError(f"the arithmetic of {name} cannot be made: {error}", "model.connector", fix) from error


def made_of(kind: type[Arithmetic], arguments: Mapping[str, Any]) -> Arithmetic:
    """An arithmetic from a connector's arguments; that of a token for every patch depends on none of them."""
    return kind() if kind is Arithmetic else kind(**arguments)


def side_of(n_patches: int, name: str) -> int:
    """Edge of the square map that the patches form."""
    side = math.isqrt(n_patches)
    if side * side != n_patches:
        raise ConfigError(
            f"{name} needs a square map of patches, the tower gives {n_patches}",
            "model.connector",
            "feature: patch, which leaves the class token out, or another connector",
        )
    return side
