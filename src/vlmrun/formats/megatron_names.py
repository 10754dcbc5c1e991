"""Names of Megatron-Core's LLaVA beside ours, with the rule that each is fused and cut by. Data, no code.

Megatron's are those of the Transformer Engine layers, which hold the norm before them (`layer_norm_weight`).

Source: alibaba/Pai-Megatron-Patch@a098ca5, as the specification has it, part B3.1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlmrun.formats.tensor_parallel import Along, Gated, Heads, Same, Vocabulary

LLM, TOWER, CONNECTOR = "language_model.", "vision_model.", "vision_projection.encoder."
LAYERS = "decoder.layers."
# What Transformer Engine keeps beside its weights; nothing, outside fp8.
EXTRA = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention",
         "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Numbers that the rules need.

    Args:
        groups: key and value heads of the LLM.
        width: of one head of the LLM.
        heads: of the tower.
        tower_width: of one head of the tower.
        vocabulary: rows of the embedding.
    """

    llm_layers: int
    groups: int
    width: int
    tower_layers: int
    heads: int
    tower_width: int
    vocabulary: int


@dataclass(frozen=True)
class Entry:
    """A tensor of Megatron's, and ours that it is made of, in order."""

    theirs: str
    ours: tuple[str, ...]
    rule: Same


def table(shape: Shape) -> Iterator[Entry]:
    """Every tensor there may be: biases and an untied head are not in all models."""
    words, heads = Vocabulary(rows=shape.vocabulary), Heads(groups=shape.groups, width=shape.width)
    yield Entry(f"{LLM}embedding.word_embeddings.weight", ("llm.model.embed_tokens.weight",), words)
    yield Entry(f"{LLM}decoder.final_layernorm.weight", ("llm.model.norm.weight",), Same())
    yield Entry(f"{LLM}output_layer.weight", ("llm.lm_head.weight",), words)
    for number in range(shape.llm_layers):
        yield from _layer(f"{LLM}{LAYERS}{number}.", f"llm.model.layers.{number}.", _llm_layer(heads))
    yield Entry(f"{TOWER}class_token", ("tower.embeddings.class_embedding",), Same())
    yield Entry(f"{TOWER}position_embeddings.weight", ("tower.embeddings.position_embedding.weight",), Same())
    yield Entry(f"{TOWER}conv1.weight", ("tower.embeddings.patch_embedding.weight",), Same())
    yield Entry(f"{TOWER}ln_pre.weight", ("tower.pre_layrnorm.weight",), Same())
    yield Entry(f"{TOWER}ln_pre.bias", ("tower.pre_layrnorm.bias",), Same())
    vision = Heads(groups=shape.heads, width=shape.tower_width)
    for number in range(shape.tower_layers):
        yield from _layer(f"{TOWER}{LAYERS}{number}.", f"tower.encoder.layers.{number}.", _tower_layer(vision))
    for theirs, ours, rule in _CONNECTOR:
        yield Entry(CONNECTOR + theirs, (f"connector.{ours}",), rule)


Row = tuple[str, tuple[str, ...] | str, Same]


def _layer(theirs: str, ours: str, rows: list[Row]) -> Iterator[Entry]:
    for name, made_of, rule in rows:
        parts = (made_of,) if isinstance(made_of, str) else made_of
        yield Entry(theirs + name, tuple(ours + part for part in parts), rule)


def _qkv(kind: str) -> tuple[str, ...]:
    return tuple(f"self_attn.{each}_proj.{kind}" for each in "qkv")


def _llm_layer(heads: Heads) -> list[Row]:
    return [
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", Same()),
        ("self_attention.linear_qkv.weight", _qkv("weight"), heads),
        ("self_attention.linear_qkv.bias", _qkv("bias"), heads),
        ("self_attention.linear_proj.weight", "self_attn.o_proj.weight", Along(1)),
        ("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", Same()),
        ("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), Gated()),
        ("mlp.linear_fc2.weight", "mlp.down_proj.weight", Along(1)),
    ]


def _tower_layer(heads: Heads) -> list[Row]:
    return [
        ("self_attention.linear_qkv.layer_norm_weight", "layer_norm1.weight", Same()),
        ("self_attention.linear_qkv.layer_norm_bias", "layer_norm1.bias", Same()),
        ("self_attention.linear_qkv.weight", _qkv("weight"), heads),
        ("self_attention.linear_qkv.bias", _qkv("bias"), heads),
        ("self_attention.linear_proj.weight", "self_attn.out_proj.weight", Along(1)),
        ("self_attention.linear_proj.bias", "self_attn.out_proj.bias", Same()),
        ("mlp.linear_fc1.layer_norm_weight", "layer_norm2.weight", Same()),
        ("mlp.linear_fc1.layer_norm_bias", "layer_norm2.bias", Same()),
        ("mlp.linear_fc1.weight", "mlp.fc1.weight", Along(0)),
        ("mlp.linear_fc1.bias", "mlp.fc1.bias", Along(0)),
        ("mlp.linear_fc2.weight", "mlp.fc2.weight", Along(1)),
        ("mlp.linear_fc2.bias", "mlp.fc2.bias", Same()),
    ]


_CONNECTOR: list[tuple[str, str, Same]] = [
    ("linear_fc1.weight", "layers.0.weight", Along(0)),
    ("linear_fc1.bias", "layers.0.bias", Along(0)),
    ("linear_fc2.weight", "layers.2.weight", Along(1)),
    ("linear_fc2.bias", "layers.2.bias", Same()),
]
# Megatron's own layers keep the norm beside the linear layer; read as well.
LOCAL = (
    (".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight"),
    (".input_layernorm.bias", ".self_attention.linear_qkv.layer_norm_bias"),
    (".pre_mlp_layernorm.weight", ".mlp.linear_fc1.layer_norm_weight"),
    (".pre_mlp_layernorm.bias", ".mlp.linear_fc1.layer_norm_bias"),
)
