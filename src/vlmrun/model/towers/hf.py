"""Vision transformers of transformers, run only as deep as the requested layers need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmrun.arch import towers as arch
from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError, suggest
from vlmrun.model import pretrained, quantize
from vlmrun.model.towers import s2
from vlmrun.model.towers.base import Tower

PREPROCESSOR = "preprocessor_config.json"


class HuggingFaceTower(Tower):
    """Base of towers whose model has `embeddings` and a list of encoder layers.

    `layers` count like `hidden_states` of transformers, as LLaVA's select layer does: 0 is the encoder's input, -1 the
    last layer's output before any final norm. Layers behind the deepest requested one are loaded and saved, not run.

    Args:
        layers: None: the connector asks for them (`choose_layers`).
        scales: S2, multiples of the tower's own size; None: that size alone.
        n_class: leading tokens that are no patches.
        n_dropped: how many of those are left out of the features.
        image_size: edge of the images; None: as the model's config says.
    """

    ARITHMETIC = arch.Transformer
    model: Any

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None,
        scales: Sequence[int] | None = None,
        *,
        n_class: int = 0,
        n_dropped: int = 0,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        config = self.model.config
        self.n_layers = config.num_hidden_layers
        self.width = config.hidden_size
        self.first = n_dropped
        self.scales = arch.scales_of(scales)
        if len(self.scales) > 1 and n_class != n_dropped:
            raise ConfigError("a class token has no place among scales", "model.tower.feature", "feature: patch")
        self.native_size: int = image_size or config.image_size
        self.image_size = self.native_size * self.scales[-1]
        self.n_patches = arch.n_patches(self.native_size, config.patch_size) + n_class - n_dropped
        if layers is not None:
            self.choose_layers(layers)

    def choose_layers(self, layers: Sequence[int]) -> None:
        """Says which layers the features are taken from."""
        self.layers = arch.positions(layers, self.n_layers)
        self.hidden_dim = self.width * len(self.layers) * len(self.scales)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of every requested layer, in the order they were asked for."""
        if len(self.scales) > 1:
            return s2.features(pixels, self.scales, self.native_size, self._encode)
        return self._encode(pixels)

    def _encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.encoder_input(pixels)  # [N, n_class + P, Dv]
        found = {0: hidden}
        for index, layer in enumerate(self.blocks[: max(self.layers)], start=1):
            hidden = layer(hidden, None)
            found[index] = hidden
        return [found[index][:, self.first :] for index in self.layers]  # each [N, P, Dv]

    @property
    def blocks(self) -> Any:
        """The encoder's layers."""
        return self.model.encoder.layers

    def encoder_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the first encoder layer takes."""
        embedded: torch.Tensor = self.model.embeddings(pixels)
        return embedded

    def prepare(self, source: Path | None, preprocessor: dict[str, Any]) -> None:
        """Remembers where the weights came from and how images are made ready: as said there, or as given here."""
        self.source = source
        self.preprocessor = read_preprocessor(source) if source else preprocessor
        if len(self.scales) > 1:
            self.preprocessor = s2.enlarge(self.preprocessor, self.image_size)

    def unused(self) -> list[nn.Parameter]:
        """Everything behind the deepest requested layer: later layers, the final norm, a pooling head."""
        used = {
            id(p) for name, module in self.model.named_children() if name not in _BEHIND for p in module.parameters()
        }
        for layer in self.blocks[max(self.layers) :]:
            used -= {id(parameter) for parameter in layer.parameters()}
        return [p for name, p in self.model.named_parameters() if id(p) not in used or name.endswith("mask_token")]

    def config_dict(self) -> dict[str, Any]:
        """The vision model's own config."""
        values: dict[str, Any] = json.loads(self.model.config.to_json_string())
        return values | {"architectures": [type(self.model).__name__]}

    def saved_name(self, name: str) -> str:
        """Drops our own attribute's prefix."""
        return name.removeprefix("model.")

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Non-reentrant, so that frozen inputs do no harm."""
        if enabled:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()


_BEHIND = ("post_layernorm", "layernorm", "head")


def load_parts(
    path: str | None,
    config: dict[str, Any] | None,
    names: tuple[str, str, tuple[str, ...]],
    *,
    dtype: torch.dtype,
    attention: str,
) -> tuple[Any, Path | None]:
    """A vision model from a folder, or made at random from a config.

    Args:
        names: the model class, its config class, and the `model_type`s that a folder of this family may have.

    Returns:
        The model and the folder it came from.
    """
    import transformers

    model_class, config_class, model_types = names
    if (path is None) == (config is None):
        raise ConfigError("a tower takes either `path` or `config`", "model.tower", "give exactly one of them")
    model_type = getattr(transformers, model_class)
    if path is None:
        values = {key: value for key, value in (config or {}).items() if key != "model_type"}
        made = getattr(transformers, config_class)(**values)
        return pretrained.create(model_type, made, dtype=dtype, attention=attention), None
    found = read_config(path).get("model_type")
    if found not in model_types:
        raise CheckpointError(
            f"this folder holds a {found!r} model, not one of: {', '.join(model_types)}",
            str(locate(path)),
            "choose the tower class of that family in model.tower._target_",
        )
    folder = locate(path)
    model = pretrained.load(model_type, folder, dtype=dtype, attention=attention)
    if quantize.packed(folder) is not None:
        quantize.settle(model, dtype)
    return model, folder


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The `preprocessor_config.json` beside a tower's weights."""
    return pretrained.read_json(folder / PREPROCESSOR, "images cannot be made ready without it: fetch the model again")


def check_feature(feature: str) -> None:
    """`patch` leaves the class token out, `cls_patch` keeps it."""
    if feature not in ("patch", "cls_patch"):
        fix = suggest(feature, ["patch", "cls_patch"], noun="features")
        raise ConfigError(f"unknown feature {feature!r}", "model.tower.feature", fix)
