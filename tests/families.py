"""A tiny model of every family of LLMs, made in-process: two layers, width 32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.pico import LLAMA
from vlmrun.arch.families import find

VOCABULARY = 328  # tests.pico's tokenizer has 320, and a class of transformers may add some
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOWED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
# What each family needs besides the values that all share.
TINY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "phi": {},  # its head has a bias
    "phi3": {"pad_token_id": 0},
    "stablelm": {},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, **_WINDOWED},
    "gemma3_text": {"head_dim": 8, **_WINDOWED},
    "gemma4_text": {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, **_WINDOWED},
    "cohere2": {"head_dim": 8, "logit_scale": 0.25, **_WINDOWED},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "smollm3": {"pad_token_id": 0},
    "olmo2": {"pad_token_id": 0},
    "olmo3": {"pad_token_id": 0, **_WINDOWED},
    "glm": {"head_dim": 8, "pad_token_id": 0},
    "glm4": {"head_dim": 8, "pad_token_id": 0},
    "exaone4": {**_WINDOWED},
    "ministral": {"head_dim": 8, "sliding_window": 6},
    "ministral3": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "seed_oss": {"head_dim": 8, "attention_dropout": 0.0, "residual_dropout": 0.0},
    "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "helium": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, **_MOE},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **_WINDOWED},
    "deepseek_v3": {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_MOE,
    },
}  # fmt: skip
# Known to other tests alone: no row says anything of them.
WITHOUT_ROW: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25},
    "gpt_neox": {"tie_word_embeddings": False},
}


def values(family: str, **changes: Any) -> dict[str, Any]:
    """The config of a tiny model, its `model_type` included."""
    own = {**TINY, **WITHOUT_ROW}[family]
    ids = {"bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 1}
    return {"model_type": family, "vocab_size": VOCABULARY, **LLAMA, **ids, **own, **changes}


def attention(family: str) -> str:
    """sdpa, where the family knows it."""
    return find(family).attention_like("sdpa")


def make_llm(family: str, **changes: Any) -> Any:
    """A random model; one whose head has a bias has one that does something."""
    from transformers import AutoConfig, AutoModelForCausalLM

    given = values(family, **changes)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention(family))
    head = made.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return made
