"""What a family cannot do is told before a weight is loaded, by its name and what is missing."""

import json

import pytest
import torch

from tests.families import TINY, make_llm, values
from tests.unit.checks.test_engines_rules import _changed
from vlmrun.arch import causal_lms, families
from vlmrun.checks import engines, llm, table
from vlmrun.checks import families as rules
from vlmrun.errors import ConfigError
from vlmrun.model.llm import load

EVERY = [*rules.RULES, *llm.RULES, *engines.RULES]


def _found(family, **changes):
    config = {**values(family), **changes.pop("config", {})} if family in TINY else {"model_type": family}
    run = _changed(llm=config, **changes)
    return [f"{problem.where}: {problem.what} | {problem.fix}" for problem in table.problems(EVERY, run)]


def _told(found, *parts):
    assert any(all(part in line for part in parts) for line in found), found


def test_every_family_of_transformers_is_read_from_its_source():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_lms.names() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_an_unknown_family_is_named_with_the_nearest():
    _told(_found("qwen33"), "no causal language model 'qwen33'", "did you mean 'qwen3'?", "own-parts.md")
    _told(_found("zzzzzzzz"), "no causal language model 'zzzzzzzz' | a newer transformers")
    assert not any("no causal" in line for line in _found("starcoder2"))


def test_a_whole_vlm_is_no_llm(tmp_path):
    run = _changed(llm={"model_type": "gemma3", "vision_config": {}, "text_config": values("gemma3_text")})
    _told([f"{p.what} | {p.fix}" for p in table.problems(rules.RULES, run)], "whole VLM (gemma3)", "vlmrun convert")


def test_what_a_family_cannot_do_is_told():
    _told(_found("qwen3_moe", tune="full"), "tune.llm: qwen3_moe has experts", "balances", "instruct.tune.llm=lora")
    _told(_found("gpt_oss", tune="qlora"), "gpt_oss has experts", "full precision")
    _told(_found("gpt_oss"), "knows no attention 'sdpa'", "hardware.attention=eager")
    _told(_found("gemma4_text", config={"hidden_size_per_layer_input": 16}), "gemma4_text cannot be", "look up every")
    assert not [line for line in _found("gemma4_text") if "cannot be" in line]
    packing = {"length": 64, "order": "best_fit"}
    _told(_found("lfm2", packing=packing), "samples of one row are not known to stay apart in lfm2")
    two = {"ranks_per_node": 2, "launcher": "torchrun"}
    for family, how in (("lfm2", "convolutions"), ("qwen3_5_text", "linear attention")):
        _told(_found(family, hardware=two | {"sequence_parallel": 2}), f"{family} looks at other positions", how)
        _told(_found(family, hardware=two | {"tensor_parallel": 2}), f"how the layers of {family} can be shared is not")


@pytest.mark.parametrize("family", [name for name, row in families.FAMILIES.items() if row.window])
def test_a_window_that_a_config_leaves_to_its_family_is_known(family):
    from transformers import AutoConfig

    assert AutoConfig.for_model(family).sliding_window == families.FAMILIES[family].window


def _mixed(llm, embeds):
    """Which positions' outputs move when the first one's input does, if attention hands every position only its own."""
    from transformers import AttentionInterface

    def alone(module, query, key, value, *_, **__):
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None

    AttentionInterface.register("alone", alone)
    try:
        llm.config._attn_implementation = "alone"
        changed = embeds.clone()
        changed[:, 0] = embeds[:, 1]
        with torch.no_grad():
            before, after = (llm(inputs_embeds=given, use_cache=False).logits for given in (embeds, changed))
        return (before - after).abs().amax((0, 2)) > 1e-4
    finally:
        AttentionInterface._global_mapping.pop("alone")


@pytest.mark.parametrize("family", [name for name in TINY if not families.find(name).own_attention])
def test_positions_meet_in_attention_alone_unless_the_row_says_so(family):
    """What sequence parallelism rests on: everything but attention looks at one position at a time."""
    moved = _mixed(make_llm(family).eval(), torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0)))
    assert moved[0]
    assert bool(moved[1:].any()) == (families.find(family).beside is not None)


def test_an_llm_that_cannot_read_or_continue_embeddings_is_refused_before_its_weights(tmp_path):
    how = {"dtype": torch.float32, "attention": "eager"}
    with pytest.raises(ConfigError, match=r"FalconH1ForCausalLM of transformers continues token ids only"):
        load(None, {"model_type": "falcon_h1"}, "builtin:micro-llm", **how)
    with pytest.raises(ConfigError, match=r"no causal language model of the type 'vit'"):
        load(None, {"model_type": "vit"}, "builtin:micro-llm", **how)
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values("gemma4_text", hidden_size_per_layer_input=16)))
    with pytest.raises(ConfigError, match="look up every token's id"):
        load(str(folder), None, "builtin:micro-llm", **how)
