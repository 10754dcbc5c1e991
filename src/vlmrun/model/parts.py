"""From a model description to a model: each part built in turn, under a seed of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmrun.build import build, find
from vlmrun.config import derived
from vlmrun.config.schema import ModelConfig, Slices
from vlmrun.errors import ConfigError
from vlmrun.model import new_tokens, projector_file
from vlmrun.model.connectors.base import Connector
from vlmrun.model.llm import LLM
from vlmrun.model.tiles import add_newline
from vlmrun.model.towers.base import Tower
from vlmrun.model.vlm import VLM


@dataclass
class Loaded:
    """A VLM and all that belongs to it.

    Attributes:
        preprocessor: the tower's `preprocessor_config.json`.
        sources: folder that each of llm, tokenizer, tower, connector and adapter was loaded from; None when made at
            random or not there. A part that did not change is linked or copied from here when saved.
        template: fields of the template the model was saved with; None for one put together from parts.
        quantized: how the LLM's linear layers are held (`quantise.of`); None: as they are.
    """

    vlm: VLM
    tokenizer: Any
    model: ModelConfig
    preprocessor: dict[str, Any]
    sources: dict[str, Path | None]
    template: dict[str, Any] | None = None
    quantized: dict[str, Any] | None = None


def assemble(
    model: ModelConfig, *, dtype: torch.dtype, attention: str, seed: int, quantized: dict[str, Any] | None = None
) -> Loaded:
    """Builds the three parts that a description names, in eval mode.

    What is random in a part depends on `seed` and the part's name alone, not on what was built before it.

    Args:
        quantized: for a quantized LLM (`quantise.of`).

    Raises:
        ConfigError: when a target is unknown or takes other arguments.
        CheckpointError: when weights are missing or do not fit.
    """
    with seeded(seed, "llm"):
        # Only what is asked for: a loader of one's own may know neither.
        asked: dict[str, Any] = {"quant": quantized, "added": tuple(added_tokens(model))}
        given = {key: value for key, value in asked.items() if value}
        llm: LLM = build(model.llm, dtype=dtype, attention=attention, **given)
    with seeded(seed, "tower"):
        tower: Tower = build(model.tower, Tower, dtype=dtype, attention=attention)
    with seeded(seed, "connector"):
        connector = make_connector(model, tower, llm.model.config.get_text_config().hidden_size)
    source = _fill_rows(model, llm)
    sources = {
        "llm": source,
        "tokenizer": llm.tokenizer_source,
        "tower": tower.source,
        "connector": None,
        "adapter": None,
    }
    vlm = VLM(llm.model, tower, connector.to(dtype), model.tiles).eval()
    return Loaded(vlm, llm.tokenizer, model, tower.preprocessor, sources, quantized=quantized)


def make_connector(model: ModelConfig, tower: Tower, llm_dim: int) -> Connector:
    """The connector for this tower, which is asked first which layers are asked for."""
    target, weights = derived.connector_weights(model.connector)
    kind = find(target, Connector, vision_dim=0, llm_dim=0)
    wanted = kind.wanted_layers(getattr(tower, "n_layers", 0), **target.arguments)
    if wanted is not None and tower.layers:
        raise ConfigError(
            f"{kind.__name__} chooses the tower's layers itself", "model.tower.layers", "model.tower.layers=null"
        )
    if wanted is not None:
        tower.choose_layers(wanted)
    elif not tower.layers and hasattr(tower, "n_layers"):
        raise ConfigError(
            f"model.tower.layers is null, but {kind.__name__} asks for none", "model.tower.layers", "[-2], for instance"
        )
    vision_dim = tower.hidden_dim if wanted is None else tower.hidden_dim // len(wanted)
    if tower.ARITHMETIC.ADAPTIVE and not kind.ARITHMETIC.ADAPTIVE and isinstance(model.tiles, Slices):
        raise ConfigError(
            f"slices of this tower have shapes of their own, which {kind.__name__} does not take",
            "model.connector",
            "model/connector=resampler",
        )
    connector: Connector = build(target, Connector, vision_dim=vision_dim, llm_dim=llm_dim)
    add_newline(connector, model.tiles, llm_dim)
    if weights is not None:
        projector_file.fill(connector, weights)
    return connector


def _fill_rows(model: ModelConfig, llm: LLM) -> Path | None:
    """Embeddings of added tokens from the connector's file, if it has any; where the LLM is still found as it is."""
    _, weights = derived.connector_weights(model.connector)
    found = None if weights is None else projector_file.rows(weights)
    if found is None:
        return llm.source
    new_tokens.fill_rows(llm.model, llm.tokenizer, added_tokens(model), found, str(weights))
    return None


def added_tokens(model: ModelConfig) -> list[str]:
    """Tokens that a description adds to the LLM's vocabulary, markers of images first."""
    return [*(model.image_markers or []), *model.new_tokens]


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers that depend on `seed` and `name` only; the outer generator is left as it was."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1
    with torch.random.fork_rng():
        torch.manual_seed(number)
        yield
