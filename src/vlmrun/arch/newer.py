"""Rows of the families that came after upstream's projects: what trains today.

Every mark is tried on a tiny model of the family: tests/unit/model/test_every_family.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlmrun.arch import llms
from vlmrun.arch.family import EVERY, LLAMA_LAYERS, Family, like_llama

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATE_UP = (*_ATTENTION, "gate_up_proj", "down_proj")


def _reads_ids(config: dict[str, Any]) -> str | None:
    """The small Gemma 4 look ids up in every block."""
    if config.get("hidden_size_per_layer_input", 256):
        return "its blocks look up every token's id again, and an image has none (hidden_size_per_layer_input)"
    return None


ROWS: tuple[Family, ...] = (
    like_llama("qwen3", sizes=partial(llms.dense, defaults={"head_dim": 128}, out_bias=None, heads_normed="alone")),
    like_llama(
        "smollm3",
        sizes=partial(llms.dense, defaults={"num_key_value_heads": 4, "tie_word_embeddings": True}, out_bias=None),
        tensor_parallel=True,
        tied=True,
    ),
    like_llama("olmo2", sizes=partial(llms.dense, out_bias=None, heads_normed="together")),
    like_llama("olmo3", sizes=partial(llms.dense, out_bias=None, heads_normed="together"), window=4096),
    like_llama("glm", layers=_GATE_UP, sizes=partial(llms.dense, defaults=llms.GLM, gate_up=True)),
    like_llama("glm4", layers=_GATE_UP, sizes=partial(llms.dense, defaults=llms.GLM, gate_up=True, n_norms=4)),
    like_llama("exaone4", sizes=partial(llms.dense, heads_normed="alone"), window=4096),
    like_llama(
        "ministral", sizes=partial(llms.dense, defaults={"num_key_value_heads": 8}), tensor_parallel=True, window=4096
    ),
    like_llama(
        "ministral3",
        sizes=partial(llms.dense, defaults={"num_key_value_heads": 8, "head_dim": 128}),
        tensor_parallel=True,
    ),
    like_llama(
        "internlm3",
        sizes=partial(llms.dense, defaults={"num_key_value_heads": 2, "head_dim": 128}, out_bias=None),
        tensor_parallel=True,
    ),
    like_llama(
        "seed_oss",
        sizes=partial(llms.dense, defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True}),
        tensor_parallel=True,
    ),
    like_llama(
        "gemma3_text",
        sizes=partial(llms.dense, defaults=llms.GEMMA, out_bias=None, n_norms=4, heads_normed="alone"),
        tied=True,
        window=4096,
    ),
    like_llama("gemma4_text", tied=True, window=512, refuse=_reads_ids),
    like_llama("cohere2", tensor_parallel=True, tied=True, window=4096),
    like_llama("ernie4_5", tensor_parallel=True, tied=True),
    like_llama("hunyuan_v1_dense"),
    like_llama("helium", tensor_parallel=True),
    Family(
        "lfm2",
        layers=(*_ATTENTION[:3], "out_proj", "in_proj", "w1", "w2", "w3"),
        attention=EVERY,
        tied=True,
        beside="convolutions",
    ),
    Family(
        "qwen3_5_text",
        layers=(*LLAMA_LAYERS, "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
        attention=EVERY,
        beside="linear attention",
    ),
    like_llama("mixtral", layers=_ATTENTION, experts=True),
    like_llama("qwen3_moe", layers=_ATTENTION, experts=True),
    like_llama("gpt_oss", layers=_ATTENTION, attention=("eager",), packable=False, window=128, experts=True),
    like_llama(
        "deepseek_v3",
        layers=(
            "q_a_proj",
            "q_b_proj",
            "kv_a_proj_with_mqa",
            "kv_b_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        experts=True,
    ),
)
