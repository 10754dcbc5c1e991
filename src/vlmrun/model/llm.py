"""The language model and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmrun.arch.families import FAMILIES, find
from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError, suggest
from vlmrun.model import families, new_tokens, pretrained, quantize
from vlmrun.model.tokenizers import is_converted, load_tokenizer


@dataclass
class LLM:
    """A causal LLM of transformers, its fast tokenizer, and the folders both came from.

    `source` is None when the weights were made at random or have new rows; `tokenizer_source` is None when the
    tokenizer is another than the files in its folder say (converted, with other roles, with new tokens).
    """

    model: Any
    tokenizer: Any
    source: Path | None
    tokenizer_source: Path | None


def load(  # noqa: PLR0913 -- the keys of a YAML file, and what the run adds
    path: str | None = None,
    config: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    tokens: dict[str, str | None] | None = None,
    legacy: bool | None = None,
    *,
    dtype: torch.dtype,
    attention: str,
    quant: quantize.Quantised | None = None,
    added: Sequence[str] = (),
) -> LLM:
    """Loads an LLM from a folder, or makes one with random weights from a config.

    Args:
        path: what `config.paths.locate` understands.
        config: a transformers config with its `model_type`; `vocab_size` defaults to the tokenizer's.
        tokenizer: where the tokenizer is, when not at `path`.
        tokens: tokens of the tokenizer that play the roles `pad`, `eos`, `unk`, `bos`.
        legacy: how its SentencePiece file is read (`tokenizers.load_tokenizer`).
        quant: quantized linear layers (`quantise.of`); the folder holds them in full precision, or in those bits.
        added: tokens added to the vocabulary; their embeddings start as the mean of all rows before them.

    Raises:
        ConfigError: when not exactly one of `path` and `config` is given, the model type is unknown, or random
            weights are to be quantized.
        CheckpointError: when files are missing or damaged, or the tokenizer has more tokens than the embedding.
    """
    _check_request(path, config, tokenizer, quant)
    folder = locate(str(tokenizer or path))
    loaded = load_tokenizer(folder, legacy=legacy, tokens=tokens)
    if path is None:
        model, source = _create(dict(config or {}), len(loaded), dtype=dtype, attention=attention), None
    else:
        source = locate(path)
        model = _read(source, dtype=dtype, attention=attention, quant=quant)
    _check_vocabulary(model, loaded, folder)
    grown = new_tokens.add(model, loaded, added)
    if grown and quant:
        raise ConfigError(
            f"tokens are added to a quantized LLM: {', '.join(grown)}", "model.new_tokens", "add them in a stage before"
        )
    same = not (grown or any((tokens or {}).values()) or is_converted(folder, legacy))
    return LLM(model, loaded, None if grown else source, folder if same else None)


def _check_request(path: str | None, config: dict[str, Any] | None, tokenizer: str | None, quant: Any) -> None:
    if (path is None) == (config is None):
        raise ConfigError("an LLM takes either `path` or `config`", "model.llm", "give exactly one of them")
    if config is not None and tokenizer is None:
        raise ConfigError("an LLM made from `config` needs a tokenizer", "model.llm.tokenizer", "give its folder")
    if quant and path is None:
        raise ConfigError(
            "an LLM with random weights cannot be quantized: they lie in no folder", "model.llm", "give its `path`"
        )


def _read(folder: Path, *, dtype: torch.dtype, attention: str, quant: quantize.Quantised | None) -> Any:
    from transformers import AutoModelForCausalLM

    if quant is None:
        if read_config(str(folder)).get("quantization_config"):
            raise CheckpointError(
                "the LLM's weights are quantized already",
                str(folder),
                "train it with tune.llm: qlora, or give the folder of the full-precision model",
            )
        config = families.read_config(folder)
        families.require(config, attention, str(folder))
        return pretrained.load(AutoModelForCausalLM, folder, dtype=dtype, attention=attention, config=config)
    return quantize.load(AutoModelForCausalLM, folder, quant, dtype=dtype, attention=attention)


def _create(config: dict[str, Any], vocab_size: int, *, dtype: torch.dtype, attention: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config.setdefault("vocab_size", vocab_size)
    model_type = str(config.get("model_type", ""))
    if model_type not in CONFIG_MAPPING and find(model_type).held_as is None:
        near = suggest(model_type, FAMILIES, noun="common types")
        raise ConfigError(f"unknown model_type {model_type!r}", "model.llm.config.model_type", near)
    made = families.from_values(config)
    families.require(made, attention, "model.llm.config")
    return pretrained.create(AutoModelForCausalLM, made, dtype=dtype, attention=attention)


def _check_vocabulary(model: Any, tokenizer: Any, folder: Path) -> None:
    n_rows = model.config.get_text_config().vocab_size
    n_tokens = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps
    if n_tokens > n_rows:
        raise CheckpointError(
            f"the tokenizer has {n_tokens} tokens but the LLM embeds only {n_rows}",
            str(folder),
            "use the tokenizer that belongs to this LLM",
        )
