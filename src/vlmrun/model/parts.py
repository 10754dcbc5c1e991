"""From a model description to a model: each part built in turn, under a seed of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmrun.build import build
from vlmrun.config.schema import ModelConfig
from vlmrun.model.connectors.base import Connector
from vlmrun.model.llm import LLM
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
        quantized: how the LLM's linear layers are held (`nf4`); None: as they are.
    """

    vlm: VLM
    tokenizer: Any
    model: ModelConfig
    preprocessor: dict[str, Any]
    sources: dict[str, Path | None]
    template: dict[str, Any] | None = None
    quantized: str | None = None


def assemble(
    model: ModelConfig, *, dtype: torch.dtype, attention: str, seed: int, quantized: str | None = None
) -> Loaded:
    """Builds the three parts that a description names, in eval mode.

    What is random in a part depends on `seed` and the part's name alone, not on what was built before it.

    Args:
        quantized: `nf4` for an LLM in 4 bits.

    Raises:
        ConfigError: when a target is unknown or takes other arguments.
        CheckpointError: when weights are missing or do not fit.
    """
    with seeded(seed, "llm"):
        llm: LLM = build(model.llm, dtype=dtype, attention=attention, **({"quantized": quantized} if quantized else {}))
    with seeded(seed, "tower"):
        tower: Tower = build(model.tower, Tower, dtype=dtype, attention=attention)
    with seeded(seed, "connector"):
        llm_dim = llm.model.config.get_text_config().hidden_size
        connector: Connector = build(model.connector, Connector, vision_dim=tower.hidden_dim, llm_dim=llm_dim)
    sources = {
        "llm": llm.source,
        "tokenizer": llm.tokenizer_source,
        "tower": tower.source,
        "connector": None,
        "adapter": None,
    }
    vlm = VLM(llm.model, tower, connector.to(dtype)).eval()
    return Loaded(vlm, llm.tokenizer, model, tower.preprocessor, sources, quantized=quantized)


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers that depend on `seed` and `name` only; the outer generator goes on as if nothing had happened."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1
    with torch.random.fork_rng():
        torch.manual_seed(number)
        yield
