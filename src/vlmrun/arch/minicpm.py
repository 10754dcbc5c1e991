"""MiniCPM-2B in the words of Granite, which transformers knows: Llama with the same three scalings.

Source: openbmb/MiniCPM-2B-sft-bf16 modeling_minicpm.py; arXiv:2404.06395 section 4
"""

from __future__ import annotations

import math
from typing import Any

from vlmrun.errors import CheckpointError

_NEEDED = ("scale_emb", "scale_depth", "dim_model_base", "hidden_size", "num_hidden_layers")
# Fields of config.json that mean the same in both.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "rope_theta", "attention_bias", "attention_dropout",
)  # fmt: skip


def granite_values(minicpm: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a Granite that computes the same, tensor for tensor.

    Raises:
        CheckpointError: when a scaling is missing, or the model has experts or another form of positions.
    """
    missing = [key for key in _NEEDED if key not in minicpm]
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
