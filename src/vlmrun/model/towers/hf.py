"""Vision transformers of transformers, run only as deep as the requested layers need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model import pretrained
from vlmrun.model.towers.base import Tower

PREPROCESSOR = "preprocessor_config.json"


class HuggingFaceTower(Tower):
    """Base of towers whose model has `embeddings` and `encoder.layers`.

    `layers` count like `hidden_states` of transformers, as LLaVA's select layer does: 0 is the encoder's input, -1 the
    last layer's output before any final norm. Layers behind the deepest requested one are loaded and saved, not run.
    """

    model: Any
    n_class_tokens = 0  # leading tokens that are no patches

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        config = self.model.config
        self.layers = _positions(layers, config.num_hidden_layers)
        self.hidden_dim = config.hidden_size * len(self.layers)
        self.image_size = config.image_size
        self.n_patches = (config.image_size // config.patch_size) ** 2

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of every requested layer, in the order they were asked for."""
        hidden = self.encoder_input(pixels)
        found = {0: hidden}
        for index, layer in enumerate(self.model.encoder.layers[: max(self.layers)], start=1):
            hidden = layer(hidden, None)
            found[index] = hidden
        return [self.select(found[index]) for index in self.layers]

    def encoder_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the first encoder layer takes."""
        return self.model.embeddings(pixels)

    def select(self, hidden: torch.Tensor) -> torch.Tensor:
        """The features of a hidden state that are handed on."""
        return hidden

    def unused(self) -> list[nn.Parameter]:
        """Everything behind the deepest requested layer: later layers, the final norm, a pooling head."""
        used = {
            id(p) for name, module in self.model.named_children() if name not in _BEHIND for p in module.parameters()
        }
        for layer in self.model.encoder.layers[max(self.layers) :]:
            used -= {id(parameter) for parameter in layer.parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in used]

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


_BEHIND = ("post_layernorm", "head")


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
    return pretrained.load(model_type, folder, dtype=dtype, attention=attention), folder


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The `preprocessor_config.json` beside a tower's weights."""
    return pretrained.read_json(
        folder / PREPROCESSOR, "pictures cannot be made ready without it: fetch the model again"
    )


def _positions(layers: Sequence[int], n_layers: int) -> list[int]:
    """Layer numbers counted from 0, the encoder's input."""
    wrong = [layer for layer in layers if not -(n_layers + 1) <= layer <= n_layers]
    if wrong or not layers:
        raise ConfigError(
            f"the tower has no layer {wrong[0]}" if wrong else "no tower layer is asked for",
            "model.tower.layers",
            f"it has {n_layers} layers: give numbers from {-(n_layers + 1)} to {n_layers}, 0 being the encoder's input",
        )
    return [layer if layer >= 0 else n_layers + 1 + layer for layer in layers]
