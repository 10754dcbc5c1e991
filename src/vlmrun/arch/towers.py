"""What vision towers do to numbers: features of an image, layers, sizes. Free of torch.

Every tower class names one of these as its `ARITHMETIC`; checks and plan find it through that name (`arithmetic`), so a
tower outside the package whose config.json is of another kind names one of its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmrun import build
from vlmrun.arch import config_files
from vlmrun.arch.config_files import section, size
from vlmrun.arch.sizes import Tower, vit_block
from vlmrun.config.schema import Target
from vlmrun.errors import ConfigError

SUPPLIED = frozenset({"dtype", "attention"})  # arguments of a tower's class that do not come from the YAML
_CLIP = ("clip", "clip_vision_model")
_SIGLIP = ("siglip", "siglip_vision_model")

Config = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """Of a tower: width of a layer, number of blocks, features per image, edge of images; None: not stated."""

    hidden_dim: int | None
    n_layers: int | None
    n_patches: int | None
    image_size: int | None


@dataclass(frozen=True)
class Arithmetic:
    """Of a vision transformer whose config.json has the usual keys.

    Args:
        config: config.json, or the section of it that is the tower's.
        arguments: in the YAML.

    Attributes:
        ADAPTIVE: the tower takes images of any shape in whole patches, as strips, with their grids:
            `forward(pixels, grids)`. Features of shorter ones are filled up to the longest.
        FIRST: the first layer that can be asked for: 0 is the input of the first block.
    """

    ADAPTIVE: ClassVar[bool] = False
    FIRST: ClassVar[int] = 0

    config: Config
    arguments: Config

    @property
    def scales(self) -> list[int]:
        """S2: multiples of the tower's own size."""
        return scales_of(self.arguments.get("scales"))

    @property
    def n_layers(self) -> int | None:
        """Blocks; None: not stated."""
        stated = self.config.get("num_hidden_layers")
        return stated if isinstance(stated, int) else None

    def facts(self) -> Facts:
        """What is known before the tower is built.

        Raises:
            CheckpointError: when a size is missing or of a wrong type.
        """
        edge = self.arguments.get("image_size") or size(self.config, "image_size")
        patches = n_patches(edge, size(self.config, "patch_size"))
        patches += self.arguments.get("feature") == "cls_patch"
        width, depth = size(self.config, "hidden_size"), size(self.config, "num_hidden_layers")
        return Facts(width, depth, patches, edge * self.scales[-1])

    def sizes(self, layers: Sequence[int]) -> Tower | None:
        """For the plan; None: it builds the tower without weights and asks it.

        Args:
            layers: that are asked for, by the YAML or by the connector.
        """
        return None


def arithmetic(tower: Target, config: Config | None = None) -> Arithmetic | None:
    """That of a tower in a YAML; None when target or arguments are wrong, which `build.check` reports.

    Args:
        config: stands in for a config.json that is not here.

    Raises:
        CheckpointError: when there is no config.json.
    """
    if build.check(tower.target, tower.arguments, "model.tower", SUPPLIED):
        return None
    kind = build.attribute(tower.target, "ARITHMETIC", Arithmetic)
    values = config_files.config_of(tower) if config is None else config
    return None if kind is None else kind(section(values, "vision_config"), tower.arguments)


def facts(tower: Target) -> Facts:
    """What config.json tells; None everywhere for a target that is wrong.

    Raises:
        CheckpointError: when it is missing, or a size in it is missing or of a wrong type.
    """
    found = arithmetic(tower)
    return Facts(None, None, None, None) if found is None else found.facts()


def n_patches(edge: int, patch: int) -> int:
    """Patches of a square image; pixels that fill no patch are left out."""
    return (edge // patch) ** 2


def scales_of(scales: Sequence[int] | None) -> list[int]:
    """S2: multiples of the tower's own size, in ascending order; None means the size itself.

    Raises:
        ConfigError: when they do not begin with 1 or do not grow.
    """
    given = [1] if scales is None else list(scales)
    if not given or given[0] != 1 or any(a >= b for a, b in itertools.pairwise(given)):
        raise ConfigError(
            f"scales {given} are not 1 and growing multiples of the tower's size", "model.tower.scales", "[1, 2, 3]"
        )
    return given


def squares(scales: Sequence[int]) -> int:
    """Squares of the tower's own size that an image is seen in."""
    return sum(scale**2 for scale in scales)


def positions(layers: Sequence[int], n_layers: int, *, first: int = 0, where: str = "model.tower.layers") -> list[int]:
    """Layer numbers counted from 0, the input of the first block; negative ones count from the end, -1 the last.

    Args:
        first: the first that can be asked for.
        where: the key that they come from.

    Raises:
        ConfigError: when there is no such layer, or none is asked for.
    """
    lowest = first - 1 - n_layers
    wrong = [layer for layer in layers if not (first <= layer <= n_layers or lowest <= layer < 0)]
    if wrong or not layers:
        from_there = "0 (before the first block)" if first == 0 else str(first)
        raise ConfigError(
            f"layer {wrong[0]} does not exist: the tower has {n_layers} blocks" if wrong else "no layer is asked for",
            where,
            f"{from_there} to {n_layers}, or -1 to {lowest} from the end",
        )
    return [layer if layer >= 0 else n_layers + 1 + layer for layer in layers]


@dataclass(frozen=True)
class Transformer(Arithmetic):
    """CLIP and SigLIP, whose blocks are known; DINOv2, of which the plan asks the model itself."""

    FINAL_NORM: ClassVar[bool] = False  # features go through the last norm

    def sizes(self, layers: Sequence[int]) -> Tower | None:
        """A patch embedding, equal blocks, and what is behind them."""
        kind = str(self.config.get("model_type", ""))
        try:
            return self._vit(list(layers), clip=kind in _CLIP) if kind in (*_CLIP, *_SIGLIP) else None
        except (KeyError, TypeError, ValueError, ZeroDivisionError, ConfigError):
            return None

    def _vit(self, layers: list[int], *, clip: bool) -> Tower:
        config, scales = self.config, self.scales
        hidden, inner, n_blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        patch, edge = config["patch_size"], self.arguments.get("image_size") or config["image_size"]
        n_own = n_patches(config["image_size"], patch) + clip  # trained positions
        embedding = 3 * patch * patch * hidden + n_own * hidden
        embedding += 3 * hidden if clip else hidden  # class token and first norm; bias of the patches
        norm = 2 * hidden
        behind = norm
        if not clip and config.get("vision_use_head", True):
            # A probe, attention with it, a norm and an MLP: a block less one of its two norms.
            behind += hidden + vit_block(hidden, inner) - norm
        block = vit_block(hidden, inner)
        blocks = max(positions(layers, n_blocks))
        features = n_patches(edge, patch)
        return Tower(
            hidden=hidden,
            blocks=blocks,
            heads=config["num_attention_heads"],
            intermediate=inner,
            tokens=features + clip,
            patches=features + (clip and self.arguments.get("feature") == "cls_patch"),
            edge=edge,
            enlarged=scales[-1],
            squares=squares(scales),
            scales=len(scales),
            kept=len(layers),
            activation="quick_gelu" if clip and config.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu",
            n_parameters=embedding + n_blocks * block + behind,
            n_used=embedding + blocks * block + norm * self.FINAL_NORM,
        )


@dataclass(frozen=True)
class Navit(Transformer):
    """SigLIP on images of any shape."""

    ADAPTIVE: ClassVar[bool] = True
    FINAL_NORM: ClassVar[bool] = True


@dataclass(frozen=True)
class Timm(Arithmetic):
    """Any model of timm, whose config.json names it and tells little; its name tells the patch of a transformer."""

    FIRST: ClassVar[int] = 1

    def facts(self) -> Facts:
        """What the config states; the rest only the model knows."""
        if "architecture" not in self.config:
            return super().facts()
        table, made = self.config.get("pretrained_cfg") or {}, self.config.get("model_args") or {}
        given = self.arguments.get("image_size")
        edge = given if isinstance(given, int) else (table.get("input_size") or [None])[-1]
        named = re.search(r"patch(\d+)", str(self.config["architecture"]))
        patches = None
        if edge is not None and named is not None:
            patches = n_patches(int(edge), int(made.get("patch_size") or named[1]))
        width = made.get("embed_dim", self.config.get("num_features"))
        return Facts(width, made.get("depth"), patches, edge)
