"""What `config.json` says of the sizes of a model's parts, as far as a sample depends on them. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch import config_files, towers
from vlmrun.config.schema import ModelConfig
from vlmrun.errors import CheckpointError


@dataclass(frozen=True)
class Sizes:
    """Widths of tower and LLM, patches of an image, and the edge of a square image in pixels."""

    vision_dim: int
    llm_dim: int
    n_patches: int
    image_size: int


def of(model: ModelConfig) -> Sizes:
    """The sizes of a model whose folders are here.

    Raises:
        CheckpointError: when config.json is missing, or does not say.
    """
    tower, llm = towers.facts(model.tower), config_files.llm_facts(model.llm)
    if tower.n_patches is None or tower.hidden_dim is None:
        raise CheckpointError("config.json does not tell how many features an image gives", model.tower.target)
    layers = model.tower.arguments.get("layers")
    width = tower.hidden_dim * (len(layers) if isinstance(layers, list) else 1)
    return Sizes(width, llm.hidden_dim, tower.n_patches, tower.image_size or 0)
