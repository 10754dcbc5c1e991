"""From a config.json to the sizes of an LLM, a function for each layout; `families` says which family has which.

Values that a config leaves out are those of transformers 5.23. A test holds the counts equal to real models'.
"""

from __future__ import annotations

from typing import Any, Literal

from vlmrun.arch.linears import Linear
from vlmrun.arch.sizes import Llm

Config = dict[str, Any]

GEMMA = {"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True}
GLM = {"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True}


def _common(config: Config, vocab: int) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    hidden = config["hidden_size"]
    return {
        "hidden": hidden,
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or hidden // heads,
        "vocab": vocab,
        "intermediate": config["intermediate_size"],
        "tied": bool(config.get("tie_word_embeddings", False)),
    }


def _attention(sizes: dict[str, Any], qkv_bias: bool, out_bias: bool, out: str = "o_proj") -> tuple[Linear, ...]:
    hidden = sizes["hidden"]
    wide, narrow = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    qkv = (Linear(name, hidden, width, qkv_bias) for name, width in zip("qkv", (wide, narrow, narrow), strict=True))
    return (*(one._replace(name=f"{one.name}_proj") for one in qkv), Linear(out, wide, hidden, out_bias))


def _gated(sizes: dict[str, Any], bias: bool = False) -> tuple[Linear, ...]:
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    up = (Linear(name, hidden, inner, bias) for name in ("gate_proj", "up_proj"))
    return (*up, Linear("down_proj", inner, hidden, bias))


def llama(config: Config, vocab: int) -> Llm:
    """Llama, and what computes in the same layers."""
    sizes = _common(config, vocab)
    bias = bool(config.get("attention_bias", False))
    linears = _attention(sizes, bias, bias) + _gated(sizes, bool(config.get("mlp_bias", False)))
    return Llm(**sizes, linears=linears)


def dense(  # noqa: PLR0913 -- what families differ in
    config: Config,
    vocab: int,
    *,
    defaults: Config | None = None,
    out_bias: bool | None = False,
    n_norms: int = 2,
    heads_normed: Literal["alone", "together"] | None = None,
    gate_up: bool = False,
) -> Llm:
    """Llama with other defaults, biases or norms.

    Args:
        defaults: values that a config of this family leaves out.
        out_bias: of attention's last layer; None: as the others'.
        heads_normed: norms of queries and keys, each head on its own or all heads as one.
        gate_up: gate and up are one layer.
    """
    config = (defaults or {}) | config
    sizes = _common(config, vocab)
    bias = bool(config.get("attention_bias", False))
    mlp = _gated(sizes, bool(config.get("mlp_bias", False)))
    if gate_up:
        mlp = (Linear("gate_up_proj", sizes["hidden"], 2 * sizes["intermediate"]), mlp[-1])
    wide = {"alone": 2, "together": sizes["heads"] + sizes["kv_heads"]}
    return Llm(
        **sizes,
        linears=_attention(sizes, bias, bias if out_bias is None else out_bias) + mlp,
        n_norms=n_norms,
        beside=wide[heads_normed] * sizes["head_dim"] if heads_normed else 0,
    )


def mistral(config: Config, vocab: int) -> Llm:
    """Llama with fewer heads for keys and values."""
    sizes = _common({"num_key_value_heads": 8} | config, vocab)
    return Llm(**sizes, linears=_attention(sizes, False, False) + _gated(sizes))


def qwen2(config: Config, vocab: int) -> Llm:
    """Llama with biases in front of attention."""
    sizes = _common({"num_key_value_heads": 32} | config, vocab)
    return Llm(**sizes, linears=_attention(sizes, True, False) + _gated(sizes))


def minicpm(config: Config, vocab: int) -> Llm | None:
    """Llama with tied ends; None with experts."""
    return llama({"tie_word_embeddings": True} | config, vocab) if not config.get("num_experts") else None


def stablelm(config: Config, vocab: int) -> Llm | None:
    """Llama with layer norms and perhaps one norm for both branches; None with norms of queries and keys."""
    if config.get("qk_layernorm"):
        return None
    sizes = _common({"num_key_value_heads": 32} | config, vocab)
    linears = _attention(sizes, bool(config.get("use_qkv_bias", False)), False) + _gated(sizes)
    n_norms = 1 if config.get("use_parallel_residual") else 2
    dropout = float(config.get("hidden_dropout", 0.0))
    return Llm(**sizes, linears=linears, norm="layer", n_norms=n_norms, norm_bias=True, dropout=dropout)


def phi(config: Config, vocab: int) -> Llm | None:
    """One norm for both branches, biases everywhere; None with norms of queries and keys."""
    if config.get("qk_layernorm"):
        return None
    sizes = _common({"intermediate_size": 8192} | config, vocab)
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    mlp = (Linear("fc1", hidden, inner, True), Linear("fc2", inner, hidden, True))
    return Llm(
        **sizes,
        linears=_attention(sizes, True, True, "dense") + mlp,
        norm="layer",
        n_norms=1,
        norm_bias=True,
        gated=False,
        activation="gelu_new",
        head_bias=True,
        dropout=float(config.get("resid_pdrop", 0.0)),
    )


def phi3(config: Config, vocab: int) -> Llm:
    """Llama with q, k, v in one layer, and gate and up in another."""
    sizes = _common(config, vocab)
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    wide = (sizes["heads"] + 2 * sizes["kv_heads"]) * sizes["head_dim"]
    linears = (
        Linear("qkv_proj", hidden, wide),
        Linear("o_proj", sizes["heads"] * sizes["head_dim"], hidden),
        Linear("gate_up_proj", hidden, 2 * inner),
        Linear("down_proj", inner, hidden),
    )
    return Llm(**sizes, linears=linears, fused=True, dropout=float(config.get("resid_pdrop", 0.0)))


def mpt(config: Config, vocab: int) -> Llm:
    """Plain attention, four times the width inside (transformers takes no other), norms without bias, tied."""
    hidden, heads = config["d_model"], config["n_heads"]
    linears = (
        Linear("Wqkv", hidden, 3 * hidden),
        Linear("out_proj", hidden, hidden),
        Linear("up_proj", hidden, 4 * hidden),
        Linear("down_proj", 4 * hidden, hidden),
    )
    sizes = {"hidden": hidden, "layers": config["n_layers"], "heads": heads, "kv_heads": heads, "vocab": vocab}
    return Llm(
        **sizes,
        head_dim=hidden // heads,
        intermediate=4 * hidden,
        linears=linears,
        norm="layer",
        gated=False,
        activation="gelu",
        fused=True,
        tied=bool(config.get("tie_word_embeddings", True)),
    )
