"""What the small files of a model part tell: config.json, tokenizer.json, the headers of its weights."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vlmrun import regular
from vlmrun.arch import families
from vlmrun.arch.family import LLAMA_LAYERS
from vlmrun.config.paths import locate, read_config
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError

_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


# What GPT-2, GPT-J, MPT and their kin call the same sizes.
_COMMON_NAMES = {
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
}


@dataclass(frozen=True)
class LlmFacts:
    """Of an LLM: width, embedding rows, longest sequence (None: not stated), linear layers (None: unknown), blocks
    (None: not stated) and the last names of modules that its weights are of (empty: they are not here)."""

    hidden_dim: int
    vocab_size: int
    max_positions: int | None
    linear_layers: frozenset[str] | None
    family: str = ""
    n_blocks: int | None = None
    modules: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TokenizerFacts:
    """Of a tokenizer.

    Attributes:
        n_ids: number of ids in use.
        tokens: the text of every token.
        special: those beside the vocabulary.
        pads: whether its files name a padding token; None: not stated.
    """

    n_ids: int
    tokens: frozenset[str]
    special: frozenset[str] = frozenset()
    pads: bool | None = None


def is_told(part: Target) -> bool:
    """Whether `path`, `config` and `tokenizer` can be looked into; `build.check` says which is of a wrong type."""
    kinds = {"path": str, "config": dict, "tokenizer": str}
    typed = all(isinstance(part.arguments.get(name), kind | None) for name, kind in kinds.items())
    return typed and part.arguments.get("path") != "???"  # which is a problem of its own


def told_by(part: Target) -> str:
    """The argument that a part's sizes come from."""
    return "config" if part.arguments.get("path") is None else "path"


def config_of(part: Target) -> dict[str, Any]:
    """The part's config.json, or the `config` it is built from in-process.

    Raises:
        CheckpointError: when it cannot be read.
    """
    arguments = part.arguments
    if not is_told(part):
        raise CheckpointError(
            "path or config has a wrong type", part.target, "a path is text, a config keys and values"
        )
    if arguments.get("path") is None:
        return dict(arguments.get("config") or {})
    return read_config(arguments["path"])


def llm_facts(part: Target) -> LlmFacts:
    """Raises CheckpointError when config.json is missing, or a size in it is missing or of a wrong type."""
    config = _renamed(section(config_of(part), "text_config"))
    names = families.find(str(config.get("model_type", ""))).layers
    linear = frozenset(names) if names else _linear_in_weights(part)
    stated = config.get("max_position_embeddings") is not None
    positions = size(config, "max_position_embeddings") if stated else None
    n_blocks = size(config, "num_hidden_layers") if config.get("num_hidden_layers") is not None else None
    path = part.arguments.get("path")
    tensors = {} if path is None else tensor_shapes(locate(path))
    return LlmFacts(
        size(config, "hidden_size"),
        size(config, "vocab_size"),
        positions,
        linear,
        str(config.get("model_type", "")),
        n_blocks,
        frozenset(name.split(".")[-2] for name in tensors if "." in name),
    )


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """The same values under the names that most families use."""
    return {_COMMON_NAMES.get(key, key): value for key, value in config.items()}


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The part's own values inside the config of a whole VLM, or all of them."""
    section = config.get(name, config)
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: {name} is {section!r}, not keys and values", name, "fetch the model again")
    return section


def size(config: dict[str, Any], key: str) -> int:
    """A size stated in a config.json.

    Raises:
        CheckpointError: when it is missing or no whole number above 0.
    """
    if key not in config:
        raise CheckpointError(f"config.json has no {key!r}", key, "is this the folder of a model of this kind?")
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}", key, f"{key} is a whole number of at least 1")
    return value


def width_of(config: dict[str, Any]) -> int:
    """An LLM's width from its config.json, whatever its family calls it.

    Raises:
        CheckpointError: when it is missing or of a wrong type.
    """
    return size(_renamed(section(config, "text_config")), "hidden_size")


def head_dim(part: Target) -> int | None:
    """The size of an attention head of an LLM or a tower of transformers; None when it is not stated."""
    config = config_of(part)
    section = _renamed(config.get("text_config") or config.get("vision_config") or config)
    heads, width = section.get("num_attention_heads"), section.get("hidden_size")
    stated: Any = section.get("head_dim")
    if stated is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        stated = width // heads
    return stated if isinstance(stated, int) else None


def tokenizer_facts(part: Target) -> TokenizerFacts | None:
    """Read from tokenizer.json; None when the tokenizer comes in another form."""
    source = part.arguments.get("tokenizer") or part.arguments.get("path")
    file = locate(source) / "tokenizer.json" if source else None
    return _read_tokenizer(file) if file is not None and file.is_file() else None


@cache
def _read_tokenizer(file: Path) -> TokenizerFacts:
    config = file.with_name("tokenizer_config.json")
    for one in (file, config):
        regular.require(one, json=True)
    try:
        facts = _tokenizer_in(json.loads(file.read_text("utf-8")))
        pads = json.loads(config.read_text("utf-8")).get("pad_token") is not None if config.is_file() else None
        return replace(facts, pads=pads)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"{file} is not a whole tokenizer: {type(error).__name__} {error}"
        raise CheckpointError(what, str(file), "fetch the tokenizer again") from error


def _tokenizer_in(content: dict[str, Any]) -> TokenizerFacts:
    vocabulary = content["model"]["vocab"]  # a dict (BPE, WordPiece) or a list of [token, score] (Unigram)
    tokens = list(vocabulary) if isinstance(vocabulary, dict) else [entry[0] for entry in vocabulary]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    added = content.get("added_tokens", [])
    ids += [entry["id"] for entry in added]
    special = frozenset(entry["content"] for entry in added)
    return TokenizerFacts(max(ids, default=-1) + 1, frozenset(tokens) | special, special)


def llama_layers(llm: LlmFacts) -> list[str]:
    """Names of the linear layers of a first layer built like Llama's, as LoRA's expressions see them; else none."""
    if families.find(llm.family).layers != LLAMA_LAYERS:
        return []
    halves = {"self_attn": LLAMA_LAYERS[:4], "mlp": LLAMA_LAYERS[4:]}
    return [f"llm.model.layers.0.{half}.{name}" for half, names in halves.items() for name in names]


def _linear_in_weights(part: Target) -> frozenset[str] | None:
    """Names of matrices in the safetensors headers of an unknown family; None when there are no weights here."""
    path = part.arguments.get("path")
    shapes = {} if path is None else tensor_shapes(locate(path))
    names = {name.split(".")[-2] for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    return frozenset(names - {"embed_tokens", "wte", "wpe", "lm_head"}) or None


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Every tensor's shape, from the headers of a folder's safetensors files.

    Raises:
        CheckpointError: when a file has no such header: empty, cut off, or a pointer to the weights.
    """
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            regular.require(file)
            shapes |= _shapes_in(file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
            what = f"{file} is not a whole safetensors file: {type(error).__name__} {error}"
            raise CheckpointError(what, str(file), "fetch the weights again") from error
    return shapes


def _shapes_in(file: Path) -> dict[str, list[int]]:
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(handle.read(length))
    return {name: list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
