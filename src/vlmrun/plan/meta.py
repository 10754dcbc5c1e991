"""Sizes of parts that `families.py` does not know, from the model itself, built without memory for its weights.

The only module of this package that loads torch; it is called by name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vlmrun.arch import families as known
from vlmrun.arch import sizes
from vlmrun.arch.linears import Linear
from vlmrun.arch.towers import positions, squares
from vlmrun.build import build, find
from vlmrun.config import derived
from vlmrun.config.schema import ModelConfig, Target
from vlmrun.model import families, pretrained
from vlmrun.model.connectors.base import Connector
from vlmrun.model.tiles import add_newline
from vlmrun.model.towers.base import Tower
from vlmrun.model.vlm import VLM


def vlm(model: ModelConfig, llm: dict[str, Any], tower: dict[str, Any], n_added: int = 0) -> VLM:
    """The whole model on the meta device.

    Args:
        llm, tower: their config.json.
        n_added: rows that new tokens add.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), pretrained.quietly():
        config = families.from_values({key: value for key, value in llm.items() if key != "parameters"})
        attention = known.find(config.model_type).attention_like("sdpa")
        text = pretrained.create(AutoModelForCausalLM, config, dtype=torch.bfloat16, attention=attention)
        if n_added:
            text.resize_token_embeddings(config.vocab_size + n_added, mean_resizing=False)
        made = {key: value for key, value in tower.items() if key != "parameters"}
        arguments = {**model.tower.arguments, "path": None, "config": made}
        target = Target.model_validate({"_target_": model.tower.target, **arguments})
        eye: Tower = build(target, Tower, dtype=torch.bfloat16, attention="sdpa")
        between = _connector(model, eye, config.get_text_config().hidden_size)
        return VLM(text, eye, between, model.tiles)


def _connector(model: ModelConfig, tower: Tower, llm_dim: int) -> Connector:
    target, _ = derived.connector_weights(model.connector)
    kind = find(target, Connector, vision_dim=0, llm_dim=0)
    wanted = kind.wanted_layers(getattr(tower, "n_layers", 0), **target.arguments)
    if wanted is not None:
        tower.choose_layers(wanted)
    width = tower.hidden_dim // len(wanted or [1])
    made: Connector = build(target, Connector, vision_dim=width, llm_dim=llm_dim)
    add_newline(made, model.tiles, llm_dim)
    return made


def shapes_of(model: ModelConfig, llm: dict[str, Any], tower: dict[str, Any], n_added: int = 0) -> sizes.Shapes:
    """Sizes as `families` gives them, read off the modules of a model of any family."""
    made = vlm(model, llm, tower, n_added)
    return sizes.Shapes(_llm(made.llm), _tower(made.tower), _between(made))


def _llm(model: Any) -> sizes.Llm:
    """A decoder of equal blocks; what is not inside a block, an embedding or a head counts as `extra`."""
    config: Any = model.config.get_text_config()
    blocks: Any = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    of_blocks = tuple(map(_linears, blocks))
    linears = max(of_blocks, key=lambda block: sum(linear.n_parameters for linear in block))
    heads = config.num_attention_heads
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    first = sizes.Llm(
        hidden=config.hidden_size,
        layers=len(blocks),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=embedding.weight.shape[0],
        intermediate=max(linear.n_in for linear in linears),
        linears=linears,
        varied=of_blocks if len(set(of_blocks)) > 1 else (),
        experts=_experts(blocks, config),
        n_norms=sum("norm" in type(m).__name__.lower() for m in blocks[0].modules()),
        gated=any(linear.name.startswith(("gate", "up")) for linear in linears),
        tied=head is None or head.weight is embedding.weight,
        head_bias=getattr(head, "bias", None) is not None,
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    return replace(first, extra=total - first.n_parameters)


def _linears(block: nn.Module) -> tuple[Linear, ...]:
    return tuple(
        Linear(name.rpartition(".")[2], m.in_features, m.out_features, m.bias is not None)
        for name, m in block.named_modules()
        if isinstance(m, nn.Linear)
    )


def _experts(blocks: Any, config: Any) -> int:
    """Parameters that a token goes through in the experts of a mean block: all experts lie in one tensor."""
    inside = sum(
        p.numel() // p.shape[0] for block in blocks for p in block.parameters() if p.dim() == 3 and p.shape[1] > 1
    )
    return int(inside * (getattr(config, "num_experts_per_tok", None) or 1) // len(blocks))


def _tower(tower: Tower) -> sizes.Tower:
    """A transformer by its widest block; of another network a rough stand-in of the same parameters."""
    total = sum(parameter.numel() for parameter in tower.parameters())
    kept = len(tower.layers)
    hidden = tower.hidden_dim // kept // len(getattr(tower, "scales", [1]))
    inner = max((m.out_features for m in tower.modules() if isinstance(m, nn.Linear)), default=4 * hidden)
    deepest = max(positions(tower.layers, tower.n_layers))
    scales = getattr(tower, "scales", [1])
    return sizes.Tower(
        hidden=hidden,
        blocks=deepest,
        heads=max(1, hidden // 64),
        intermediate=inner,
        tokens=tower.n_patches + getattr(tower, "first", 1),
        patches=tower.n_patches,
        edge=tower.image_size // scales[-1],
        enlarged=scales[-1],
        squares=squares(scales),
        scales=len(scales),
        kept=kept,
        activation="gelu",
        n_parameters=total,
        n_used=total - sum(parameter.numel() for parameter in tower.unused()),
    )


def _between(model: VLM) -> sizes.Connector:
    """A connector by its linear layers and convolutions, each over all patches or all its tokens, which are more."""
    connector: Any = model.connector
    rows = max(model.tower.n_patches, connector.tokens(model.tower.n_patches))
    linears = tuple((layer, rows) for m in connector.modules() if (layer := _layer(m)) is not None)
    inside = sum(linear.n_parameters for linear, _ in linears)
    total = sum(parameter.numel() for parameter in connector.parameters())
    saved = rows * sum(linear.n_in + linear.n_out for linear, _ in linears)
    return sizes.Connector(linears, connector.tokens(model.tower.n_patches), saved, total - inside)


def _layer(module: nn.Module) -> Linear | None:
    """A linear layer; a convolution is one over what it looks at at a place. None: neither."""
    if isinstance(module, nn.Linear):
        return Linear("", module.in_features, module.out_features, module.bias is not None)
    if isinstance(module, nn.Conv2d):
        seen = module.in_channels // module.groups * math.prod(module.kernel_size)
        return Linear("", seen, module.out_channels, module.bias is not None)
    return None
