"""From a config.json to sizes, for the families we train; None for all others. `meta.py` asks the model itself.

The values that a config leaves out are those of transformers 5.23. A test holds the counts equal to real models'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmrun.arch.sizes import Connector, Linear, Llm, Tower, stack, vit_block

Config = dict[str, Any]


def llm(config: Config, n_added: int = 0) -> Llm | None:
    """Sizes of an LLM.

    Args:
        n_added: rows that new tokens add to the embedding.
    """
    config = config.get("text_config", config)
    make = _LLMS.get(str(config.get("model_type", "")))
    try:
        return make(config, int(config["vocab_size"]) + n_added) if make else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


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


def _llama(config: Config, vocab: int) -> Llm:
    sizes = _common(config, vocab)
    bias = bool(config.get("attention_bias", False))
    linears = _attention(sizes, bias, bias) + _gated(sizes, bool(config.get("mlp_bias", False)))
    return Llm(**sizes, linears=linears)


def _mistral(config: Config, vocab: int) -> Llm:
    sizes = _common({"num_key_value_heads": 8} | config, vocab)
    return Llm(**sizes, linears=_attention(sizes, False, False) + _gated(sizes))


def _qwen2(config: Config, vocab: int) -> Llm:
    sizes = _common({"num_key_value_heads": 32} | config, vocab)
    return Llm(**sizes, linears=_attention(sizes, True, False) + _gated(sizes))


def _minicpm(config: Config, vocab: int) -> Llm | None:
    return _llama({"tie_word_embeddings": True} | config, vocab) if not config.get("num_experts") else None


def _stablelm(config: Config, vocab: int) -> Llm | None:
    if config.get("qk_layernorm"):
        return None
    sizes = _common({"num_key_value_heads": 32} | config, vocab)
    linears = _attention(sizes, bool(config.get("use_qkv_bias", False)), False) + _gated(sizes)
    n_norms = 1 if config.get("use_parallel_residual") else 2
    dropout = float(config.get("hidden_dropout", 0.0))
    return Llm(**sizes, linears=linears, norm="layer", n_norms=n_norms, norm_bias=True, dropout=dropout)


def _phi(config: Config, vocab: int) -> Llm | None:
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


def _phi3(config: Config, vocab: int) -> Llm:
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


def _mpt(config: Config, vocab: int) -> Llm:
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


_LLMS: dict[str, Callable[[Config, int], Llm | None]] = {
    **dict.fromkeys(("llama", "granite"), _llama),
    "mistral": _mistral,
    "qwen2": _qwen2,
    "minicpm": _minicpm,
    "stablelm": _stablelm,
    "phi": _phi,
    "phi3": _phi3,
    "mpt": _mpt,
}


def tower(config: Config, arguments: Config, wanted: list[int] | None) -> Tower | None:
    """Sizes of a CLIP or SigLIP tower.

    Args:
        arguments: of the tower in the YAML.
        wanted: layers that the connector asks for, when the YAML leaves them to it.
    """
    config = config.get("vision_config", config)
    kind = str(config.get("model_type", ""))
    clip = kind in ("clip", "clip_vision_model")
    if not clip and kind not in ("siglip", "siglip_vision_model"):
        return None
    try:
        return _vit(config, arguments, arguments.get("layers") or wanted or [], clip=clip)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _vit(config: Config, arguments: Config, layers: list[int], *, clip: bool) -> Tower:
    hidden, inner, n_blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    edge, patch = config["image_size"], config["patch_size"]
    n_patches = (edge // patch) ** 2
    tokens = n_patches + clip
    embedding = 3 * patch * patch * hidden + tokens * hidden  # pixels to patches, positions
    embedding += 3 * hidden if clip else hidden  # class token and first norm; bias of the patches
    behind = 2 * hidden  # the last norm
    if not clip and config.get("vision_use_head", True):
        # A probe, attention with it, a norm and an MLP: a block less one of its two norms.
        behind += hidden + vit_block(hidden, inner) - 2 * hidden
    block = vit_block(hidden, inner)
    blocks = max(layer if layer >= 0 else n_blocks + 1 + layer for layer in layers)
    return Tower(
        hidden=hidden,
        blocks=blocks,
        heads=config["num_attention_heads"],
        intermediate=inner,
        tokens=tokens,
        patches=n_patches + (clip and arguments.get("feature") == "cls_patch"),
        edge=edge,
        enlarged=max(arguments.get("scales") or [1]),
        squares=sum(scale**2 for scale in arguments.get("scales") or [1]),
        kept=len(layers),
        activation="quick_gelu" if clip and config.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu",
        n_parameters=embedding + n_blocks * block + behind,
        n_used=embedding + blocks * block,
    )


_CONNECTORS = "vlmrun.model.connectors"
_DENSE = f"{_CONNECTORS}.dense.Dense"


def wanted_layers(target: str, arguments: Config, n_layers: int) -> list[int] | None:
    """Layers of the tower that a connector chooses itself."""
    if target != _DENSE:
        return None
    shallow = list(arguments.get("shallow", (7, 15)))
    return [-2, *(range(n_layers // 2 * 2) if arguments.get("kind") == "dci" else shallow)]


def connector(target: str, arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector | None:
    """Sizes of a built-in connector.

    Args:
        widths: of the tower's layers side by side, of one layer, of the LLM.
        rows: per square, coming in and going out.
    """
    make = _MAKERS.get(target)
    try:
        return make(arguments, widths, rows) if make else None
    except (KeyError, TypeError, ValueError):
        return None


def _mlp(arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector:
    wide, _, out = widths
    linears, saved = stack([wide, *[out] * int(arguments.get("depth", 2))], rows[1])
    return Connector(linears, rows[1], saved)


def _dense(arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector:
    times = {"sti": 1, "sci": 1 + len(arguments.get("shallow", (7, 15))), "dci": 3}[arguments["kind"]]
    return _mlp(arguments, (times * widths[1], widths[1], widths[2]), rows)


def _grouped(arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector:
    wide, _, out = widths
    return Connector(((Linear("", 4 * wide, out, True), rows[1]),), rows[1], 4 * wide * rows[1])


def _spp(arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector:
    wide, _, out = widths
    (many, few), version = rows, arguments["version"]
    late = few if version != "v2" else many
    linears = [(Linear("", wide, out, True), few if version == "v3" else many), (Linear("", out, out, True), late)]
    linears = [(Linear("", wide, wide, True), many), *linears] if version == "v3" else linears
    return Connector(tuple(linears), few, sum(linear.n_in * n for linear, n in linears))


def _ldp(arguments: Config, widths: tuple[int, int, int], rows: tuple[int, int]) -> Connector:
    wide, _, out = widths
    (many, few), squeezed = rows, max(8, (out // 4 + 4) // 8 * 8)
    squeezed += 8 if squeezed < 0.9 * (out // 4) else 0
    linears, saved = stack([wide, out, out], many)
    excitation = (Linear("", out, squeezed, True), Linear("", squeezed, out, True))
    blocks = []
    for n in (many, few):
        blocks += [(Linear("", out, out), n), *((linear, 1) for linear in excitation)]
        saved += 7 * out * n  # into the depthwise, its norm, the gate, the excitation, the pointwise and its norm
    # Depthwise weights and two norms, twice.
    return Connector((*linears, *blocks), few, saved, extra=2 * (9 * out + 4 * out))


_MAKERS: dict[str, Callable[[Config, tuple[int, int, int], tuple[int, int]], Connector]] = {
    f"{_CONNECTORS}.mlp.MLP": _mlp,
    _DENSE: _dense,
    f"{_CONNECTORS}.grouped.Grouped": _grouped,
    f"{_CONNECTORS}.spp.SPP": _spp,
    f"{_CONNECTORS}.ldp.LDP": _ldp,
    f"{_CONNECTORS}.identity.Identity": lambda arguments, widths, rows: Connector((), rows[1], 0),
}
