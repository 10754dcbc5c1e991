"""How Megatron cuts tensors, against tables written by hand, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.formats.megatron_names import Shape, table
from vlmrun.formats.tensor_parallel import Along, Gated, Heads, Same, Vocabulary
from vlmrun.weights.lazy import made


def rows(*numbers):
    """A column whose values say where each row came from."""
    return made(torch.tensor(numbers, dtype=torch.float32)[:, None])


def numbers(column):
    return column.load()[:, 0].tolist()


def test_queries_keys_and_values_stand_group_by_group():
    # 4 query heads, 2 key heads, 1 row each: group 0 is queries 0 and 1, group 1 queries 2 and 3.
    rule = Heads(groups=2, width=1)
    whole = rule.fuse([rows(0, 1, 2, 3), rows(10, 11), rows(20, 21)])
    assert numbers(whole) == [0, 1, 10, 20, 2, 3, 11, 21]
    assert [numbers(piece) for piece in rule.cut(whole, 2)] == [[0, 1, 10, 20], [2, 3, 11, 21]]


def test_a_towers_heads_are_groups_of_one():
    rule = Heads(groups=2, width=2)
    whole = rule.fuse([rows(0, 1, 2, 3), rows(10, 11, 12, 13), rows(20, 21, 22, 23)])
    assert numbers(whole) == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]


def test_gate_and_up_are_cut_each_on_its_own():
    rule = Gated()
    whole = rule.fuse([rows(0, 1, 2, 3), rows(10, 11, 12, 13)])
    assert numbers(whole) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert [numbers(piece) for piece in rule.cut(whole, 2)] == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_a_vocabulary_is_filled_up_with_zeros_to_128_rows_a_rank():
    rule = Vocabulary(rows=300)
    pieces = rule.cut(made(torch.ones(300, 2)), 2)
    assert [piece.shape for piece in pieces] == [(256, 2), (256, 2)]
    assert pieces[1].load()[:44].all()
    assert not pieces[1].load()[44:].any()
    assert torch.equal(rule.part(rule.join(pieces))[0].load(), torch.ones(300, 2))
    assert [len(piece) for piece in Vocabulary(rows=32768).cut(made(torch.zeros(32768, 1)), 8)] == [4096] * 8


@settings(deadline=None, max_examples=30)
@given(
    ranks=st.sampled_from([1, 2, 4, 8]), per_rank=st.integers(1, 3), queries=st.integers(1, 4), width=st.integers(1, 5)
)
def test_every_rule_comes_back_to_the_bit(ranks, per_rank, queries, width):
    groups = ranks * per_rank
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    size = groups * width
    cases = [
        (Same(), [random(size)]),
        (Along(0), [random(size, 3)]),
        (Along(1), [random(3, size)]),
        (Gated(), [random(size, 3), random(size, 3)]),
        (Heads(groups=groups, width=width), [random(size * queries, 3), random(size, 3), random(size, 3)]),
        (Heads(groups=groups, width=width), [random(size * queries), random(size), random(size)]),
        (Vocabulary(rows=size), [random(size, 3)]),
    ]
    for rule, ours in cases:
        pieces = rule.cut(rule.fuse([made(tensor) for tensor in ours]), ranks)
        assert all(tuple(piece.load().shape) == piece.shape for piece in pieces), rule
        back = rule.part(rule.join([made(piece.load()) for piece in pieces]))
        assert len(back) == len(ours), rule
        for a, b in zip(back, ours, strict=True):
            assert a.shape == tuple(b.shape), rule
            assert torch.equal(torch.cat([a.rows(n, n + 1) for n in range(len(b))]), b), rule


# HF name -> mcore name and rule, as the specification lists them (B3.1), for layer 3.
GOLDEN = {
    "language_model.embedding.word_embeddings.weight": ("llm.model.embed_tokens.weight", "Vocabulary"),
    "language_model.decoder.layers.3.self_attention.linear_qkv.layer_norm_weight": (
        "llm.model.layers.3.input_layernorm.weight", "Same"),
    "language_model.decoder.layers.3.self_attention.linear_qkv.weight": (
        "llm.model.layers.3.self_attn.q_proj.weight", "Heads"),
    "language_model.decoder.layers.3.self_attention.linear_proj.weight": (
        "llm.model.layers.3.self_attn.o_proj.weight", "Along 1"),
    "language_model.decoder.layers.3.mlp.linear_fc1.layer_norm_weight": (
        "llm.model.layers.3.post_attention_layernorm.weight", "Same"),
    "language_model.decoder.layers.3.mlp.linear_fc1.weight": ("llm.model.layers.3.mlp.gate_proj.weight", "Gated"),
    "language_model.decoder.layers.3.mlp.linear_fc2.weight": ("llm.model.layers.3.mlp.down_proj.weight", "Along 1"),
    "language_model.decoder.final_layernorm.weight": ("llm.model.norm.weight", "Same"),
    "language_model.output_layer.weight": ("llm.lm_head.weight", "Vocabulary"),
    "vision_model.class_token": ("tower.embeddings.class_embedding", "Same"),
    "vision_model.position_embeddings.weight": ("tower.embeddings.position_embedding.weight", "Same"),
    "vision_model.conv1.weight": ("tower.embeddings.patch_embedding.weight", "Same"),
    "vision_model.ln_pre.bias": ("tower.pre_layrnorm.bias", "Same"),
    "vision_model.decoder.layers.3.self_attention.linear_qkv.bias": (
        "tower.encoder.layers.3.self_attn.q_proj.bias", "Heads"),
    "vision_model.decoder.layers.3.self_attention.linear_proj.weight": (
        "tower.encoder.layers.3.self_attn.out_proj.weight", "Along 1"),
    "vision_model.decoder.layers.3.self_attention.linear_proj.bias": (
        "tower.encoder.layers.3.self_attn.out_proj.bias", "Same"),
    "vision_model.decoder.layers.3.mlp.linear_fc1.layer_norm_bias": ("tower.encoder.layers.3.layer_norm2.bias", "Same"),
    "vision_model.decoder.layers.3.mlp.linear_fc1.bias": ("tower.encoder.layers.3.mlp.fc1.bias", "Along 0"),
    "vision_model.decoder.layers.3.mlp.linear_fc2.weight": ("tower.encoder.layers.3.mlp.fc2.weight", "Along 1"),
    "vision_model.decoder.layers.3.mlp.linear_fc2.bias": ("tower.encoder.layers.3.mlp.fc2.bias", "Same"),
    "vision_projection.encoder.linear_fc1.weight": ("connector.layers.0.weight", "Along 0"),
    "vision_projection.encoder.linear_fc2.weight": ("connector.layers.2.weight", "Along 1"),
}  # fmt: skip


@pytest.mark.parametrize("theirs", GOLDEN)
def test_names_and_cuts_are_those_of_the_specification(theirs):
    shape = Shape(llm_layers=32, groups=8, width=128, tower_layers=24, heads=16, tower_width=64, vocabulary=32768)
    entries = {entry.theirs: entry for entry in table(shape)}
    entry = entries[theirs]
    rule = type(entry.rule).__name__ + (f" {entry.rule.dim}" if type(entry.rule) is Along else "")
    assert (entry.ours[0], rule) == GOLDEN[theirs]
    if rule == "Heads" and theirs.startswith("language"):
        assert (entry.rule.groups, entry.rule.width) == (8, 128)
        fused = entry.rule.fuse([made(torch.full((n, 1), float(i))) for i, n in enumerate((4096, 1024, 1024))])
        assert fused.shape == (6144, 1)
        assert numbers(fused)[:768] == [0.0] * 512 + [1.0] * 128 + [2.0] * 128, "768 rows a group"
