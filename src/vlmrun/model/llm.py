"""The language model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError, suggest
from vlmrun.model import nf4, pretrained


@dataclass
class LLM:
    """A causal LLM of transformers, its fast tokenizer, and the folders both came from.

    `source` is None when the weights were made at random.
    """

    model: Any
    tokenizer: Any
    source: Path | None
    tokenizer_source: Path


def load(
    path: str | None = None,
    config: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    *,
    dtype: torch.dtype,
    attention: str,
    quantized: str | None = None,
) -> LLM:
    """Loads an LLM from a folder, or makes one with random weights from a config.

    Args:
        path: what `config.paths.locate` understands.
        config: a transformers config with its `model_type`; `vocab_size` defaults to the tokenizer's.
        tokenizer: where the tokenizer is, when not at `path`.
        quantized: `nf4` for linear layers in 4 bits (`model/nf4.py`); the folder holds them in full precision.

    Raises:
        ConfigError: when not exactly one of `path` and `config` is given, the model type is unknown, or random
            weights are to be quantised.
        CheckpointError: when files are missing or damaged, or the tokenizer has more tokens than the embedding.
    """
    if (path is None) == (config is None):
        raise ConfigError("an LLM takes either `path` or `config`", "model.llm", "give exactly one of them")
    if config is not None and tokenizer is None:
        raise ConfigError("an LLM made from `config` needs a tokenizer", "model.llm.tokenizer", "give its folder")
    if quantized and path is None:
        raise ConfigError(
            "an LLM with random weights cannot be quantised: they lie in no folder", "model.llm", "give its `path`"
        )
    tokenizer_source = locate(str(tokenizer or path))
    loaded = load_tokenizer(tokenizer_source)
    if path is None:
        model, source = _create(dict(config or {}), len(loaded), dtype=dtype, attention=attention), None
    else:
        source = locate(path)
        model = _read(source, dtype=dtype, attention=attention, quantized=quantized)
    _check_vocabulary(model, loaded, tokenizer_source)
    return LLM(model, loaded, source, tokenizer_source)


def load_tokenizer(folder: Path) -> Any:
    """A fast tokenizer that has a padding token.

    Raises:
        CheckpointError: when there is none, or it is not a fast one (labels need its character offsets).
    """
    from transformers import AutoTokenizer

    try:
        with pretrained.quietly():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the tokenizer cannot be loaded: {first}", str(folder), "the folder needs tokenizer.json and its config"
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            "the tokenizer is not a fast one", str(folder), "labels need character offsets: add tokenizer.json"
        )
    if tokenizer.pad_token is None:
        # Padding is masked by position, so sharing a token with text does no harm.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _read(folder: Path, *, dtype: torch.dtype, attention: str, quantized: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    if read_config(str(folder)).get("quantization_config"):
        raise CheckpointError(
            "the LLM's weights are quantised already", str(folder), "give the folder of the full-precision model"
        )
    if quantized is None:
        return pretrained.load(AutoModelForCausalLM, folder, dtype=dtype, attention=attention)
    nf4.check(quantized)
    return nf4.load(AutoModelForCausalLM, folder, dtype=dtype, attention=attention)


def _create(config: dict[str, Any], vocab_size: int, *, dtype: torch.dtype, attention: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    config.setdefault("vocab_size", vocab_size)
    model_type = str(config.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        near = suggest(model_type, ["llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma2"], noun="common types")
        raise ConfigError(f"unknown model_type {model_type!r}", "model.llm.config.model_type", near)
    made = AutoConfig.for_model(model_type, **config)
    return pretrained.create(AutoModelForCausalLM, made, dtype=dtype, attention=attention)


def _check_vocabulary(model: Any, tokenizer: Any, folder: Path) -> None:
    n_rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > n_rows:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens but the LLM embeds only {n_rows}",
            str(folder),
            "use the tokenizer that belongs to this LLM",
        )
