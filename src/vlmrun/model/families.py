"""LLM families that transformers holds under another name than their files do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vlmrun.errors import CheckpointError
from vlmrun.model import pretrained

REPLACED = {"minicpm": "granite"}
_MINICPM_NEEDS = ("scale_emb", "scale_depth", "dim_model_base", "hidden_size", "num_hidden_layers")
# Fields of config.json that mean the same in both.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "rope_theta", "attention_bias", "attention_dropout",
)  # fmt: skip


def read_config(folder: Path) -> Any:
    """The config that a folder of weights is loaded with.

    Raises:
        CheckpointError: when transformers does not know the family and nothing here replaces it.
    """
    from transformers import AutoConfig

    values = pretrained.read_json(folder / "config.json", "the folder is not that of a model")
    if values.get("model_type") in REPLACED:
        return from_values(values)
    try:
        with pretrained.quietly():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the model cannot be loaded: {first}", str(folder / "config.json"), "this family is not known"
        ) from error


def from_values(values: dict[str, Any]) -> Any:
    """A config of transformers from the values of a config.json; MiniCPM's becomes one of Granite."""
    from transformers import AutoConfig

    values = granite_values(values) if values.get("model_type") == "minicpm" else dict(values)
    return AutoConfig.for_model(str(values.pop("model_type")), **values)


def granite_values(minicpm: dict[str, Any]) -> dict[str, Any]:
    """MiniCPM-2B is Llama with three scalings; Granite has the same ones, tensor for tensor, under other names.

    Source: openbmb/MiniCPM-2B-sft-bf16 modeling_minicpm.py; arXiv:2404.06395 section 4

    Raises:
        CheckpointError: when a scaling is missing, or the model has experts or another form of positions.
    """
    missing = [key for key in _MINICPM_NEEDS if key not in minicpm]
    if missing or minicpm.get("num_experts") or minicpm.get("rope_scaling"):
        raise CheckpointError(
            f"this MiniCPM cannot be read: {', '.join(missing) or 'experts or scaled positions'}",
            "config.json",
            "MiniCPM-2B and 1B of 2024 are known",
        )
    heads = minicpm["num_attention_heads"]
    return {
        "model_type": "granite",
        **{key: minicpm[key] for key in _SHARED if key in minicpm},
        "tie_word_embeddings": minicpm.get("tie_word_embeddings", True),
        "embedding_multiplier": float(minicpm["scale_emb"]),
        "residual_multiplier": minicpm["scale_depth"] / math.sqrt(minicpm["num_hidden_layers"]),
        "logits_scaling": minicpm["hidden_size"] / minicpm["dim_model_base"],
        "attention_multiplier": (minicpm["hidden_size"] // heads) ** -0.5,
    }
