"""What the small files of a model part tell: config.json, tokenizer.json, the headers of its weights."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vlmrun.config.paths import locate, read_config
from vlmrun.config.schema import Target

# Last names of the linear layers of families whose weights may be absent when a run is checked.
_LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LINEAR_LAYERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "stablelm", "gemma", "gemma2"), _LLAMA_LIKE),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}


@dataclass(frozen=True)
class LlmFacts:
    """Of an LLM: width, embedding rows, longest sequence (None: not stated) and linear layers (None: unknown)."""

    hidden_dim: int
    vocab_size: int
    max_positions: int | None
    linear_layers: frozenset[str] | None


@dataclass(frozen=True)
class TowerFacts:
    """Of a vision tower: its width, number of blocks, and patches per image."""

    hidden_dim: int
    n_layers: int
    n_patches: int


@dataclass(frozen=True)
class TokenizerFacts:
    """Of a tokenizer: number of ids in use and the text of every token."""

    n_ids: int
    tokens: frozenset[str]


def config_of(part: Target) -> dict[str, Any]:
    """The part's config.json, or the `config` it is built from in-process."""
    arguments = part.arguments
    if arguments.get("path") is None:
        return dict(arguments.get("config") or {})
    return read_config(arguments["path"])


def llm_facts(part: Target) -> LlmFacts:
    """Raises CheckpointError when the folder or its config.json is not there, KeyError when a size is not stated."""
    config = config_of(part)
    config = config.get("text_config", config)
    names = LINEAR_LAYERS.get(config.get("model_type", ""))
    linear = frozenset(names) if names else _linear_in_weights(part)
    return LlmFacts(config["hidden_size"], config["vocab_size"], config.get("max_position_embeddings"), linear)


def tower_facts(part: Target) -> TowerFacts:
    """Raises as `llm_facts`."""
    config = config_of(part)
    config = config.get("vision_config", config)
    patches = (config["image_size"] // config["patch_size"]) ** 2
    return TowerFacts(config["hidden_size"], config["num_hidden_layers"], patches)


def tokenizer_facts(part: Target) -> TokenizerFacts | None:
    """Read from tokenizer.json; None when the tokenizer comes in another form."""
    source = part.arguments.get("tokenizer") or part.arguments.get("path")
    file = locate(source) / "tokenizer.json" if source else None
    return _read_tokenizer(file) if file is not None and file.is_file() else None


@cache
def _read_tokenizer(file: Path) -> TokenizerFacts:
    content = json.loads(file.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]  # a dict (BPE, WordPiece) or a list of [token, score] (Unigram)
    tokens = list(vocabulary) if isinstance(vocabulary, dict) else [entry[0] for entry in vocabulary]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    added = content.get("added_tokens", [])
    ids += [entry["id"] for entry in added]
    return TokenizerFacts(max(ids, default=-1) + 1, frozenset(tokens) | {entry["content"] for entry in added})


def _linear_in_weights(part: Target) -> frozenset[str] | None:
    """Names of matrices in the safetensors headers of an unknown family; None when there are no weights here."""
    path = part.arguments.get("path")
    shapes = {} if path is None else tensor_shapes(locate(path))
    names = {name.split(".")[-2] for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    return frozenset(names - {"embed_tokens", "wte", "wpe", "lm_head"}) or None


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Every tensor's shape, from the headers of a folder's safetensors files."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length)) if length < 1 << 27 else {}
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes
