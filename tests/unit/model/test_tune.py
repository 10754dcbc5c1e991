"""Freezing, full training and LoRA, part by part."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.pico import IMAGE_SIZE, LLAMA, N_PATCHES, pico_vlm
from vlmrun.config.schema import Lora, Tune
from vlmrun.errors import ConfigError
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model import tune
from vlmrun.model.vlm import VLM

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def _lora(**changes):
    return Lora(
        **{
            "r": 4,
            "alpha": 8.0,
            "dropout": 0.0,
            "targets": "all-linear",
            "bias": "none",
            "modules_to_save": [],
            **changes,
        }
    )


def _tune(llm="freeze", tower="freeze", connector="freeze"):
    return Tune(llm=llm, tower=tower, connector=connector)


def _trained(vlm):
    return {name for name, parameter in vlm.named_parameters() if parameter.requires_grad}


def _batch():
    ids = torch.tensor([[0, *[IMAGE_TOKEN] * N_PATCHES, 7, 9, 4]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids), pixels, ids.masked_fill(ids < 0, -100)


@pytest.mark.parametrize("part", ["llm", "tower", "connector"])
def test_one_part_trains_and_the_others_do_not(part):
    vlm = pico_vlm()
    tune.apply(vlm, _tune(**{part: "full"}), None)
    unused = {id(p) for p in vlm.tower.unused()}
    expected = {n for n, p in vlm.named_parameters() if n.startswith(part) and id(p) not in unused}
    assert _trained(vlm) == expected
    vlm(*_batch()).loss.backward()
    assert {name for name, p in vlm.named_parameters() if p.grad is not None} == expected


def test_lora_trains_adapters_of_every_linear_layer_but_the_head_and_starts_from_the_same_answer():
    vlm = pico_vlm()
    before = vlm(*_batch()).logits
    outside = {name: id(p) for name, p in vlm.named_parameters() if not name.startswith("llm.")}
    tune.apply(vlm, _tune(llm="lora", connector="full"), _lora())
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in _trained(vlm) if "lora_" in name}
    assert sorted(adapted) == LINEAR
    assert all("lora_" in name or name.startswith("connector.") for name in _trained(vlm))
    assert {name: id(p) for name, p in vlm.named_parameters() if not name.startswith("llm.")} == outside
    assert torch.equal(vlm(*_batch()).logits, before), "B starts at zero"
    assert not vlm.training


def test_lora_takes_the_llms_type():
    vlm = pico_vlm(dtype=torch.bfloat16)
    tune.apply(vlm, _tune(llm="lora"), _lora(targets=["q_proj"]))
    assert {p.dtype for p in vlm.parameters()} == {torch.bfloat16}
    vlm(*_batch()).loss.backward()


def test_adapters_start_from_their_own_seed():
    def first_values(outer, seed):
        vlm = pico_vlm()
        torch.manual_seed(outer)
        tune.apply(vlm, _tune(llm="lora"), _lora(targets=["q_proj"]), seed=seed)
        return next(p for name, p in vlm.named_parameters() if "lora_A" in name)

    assert torch.equal(first_values(1, 0), first_values(2, 0))
    assert not torch.equal(first_values(1, 0), first_values(1, 1))


def test_targets_that_match_nothing_are_named_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        tune.apply(pico_vlm(), _tune(llm="lora"), _lora(targets=["q_porj", "k_proj", "lm_head"]))
    text = str(caught.value)
    assert "'q_porj' matches no linear layer" in text
    assert "did you mean 'q_proj'" in text
    assert "'lm_head' matches" in text
    assert "'k_proj' matches" not in text
    with pytest.raises(ConfigError, match="no targets"):
        tune.lora_targets(pico_vlm().llm, [])


def test_lora_without_its_shape_is_an_error():
    with pytest.raises(ConfigError, match="needs to know the adapters' shape"):
        tune.apply(pico_vlm(), _tune(llm="lora"), None)


def test_an_adapter_that_is_there_is_trained_on_frozen_or_refused():
    vlm = pico_vlm()
    tune.apply(vlm, _tune(llm="lora"), _lora())
    wrapped = vlm.llm
    weights = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    tune.apply(vlm, _tune(llm="lora"), _lora(dropout=0.3))
    assert vlm.llm is wrapped
    assert all(torch.equal(p, weights[name]) for name, p in wrapped.named_parameters())
    assert all("lora_" in name for name in _trained(vlm))
    assert {m.p for m in wrapped.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    tune.apply(vlm, _tune(connector="full"), None)
    assert all(name.startswith("connector.") for name in _trained(vlm))
    with pytest.raises(ConfigError, match="adapter of another shape: r 4"):
        tune.apply(vlm, _tune(llm="lora"), _lora(r=8))
    with pytest.raises(ConfigError, match="merge the adapter first"):
        tune.apply(vlm, _tune(llm="full"), None)


def test_generation_and_checkpointing_work_through_the_adapter():
    vlm = pico_vlm(seed=2)
    ids, mask, pixels, labels = _batch()
    before = vlm.generate(ids, mask, pixels, max_new_tokens=4, eos_ids=[4])
    tune.apply(vlm, _tune(llm="lora"), _lora())
    assert torch.equal(vlm.generate(ids, mask, pixels, max_new_tokens=4, eos_ids=[4]), before)
    with torch.no_grad():
        for name, parameter in vlm.llm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    after = vlm.generate(ids, mask, pixels, max_new_tokens=4, eos_ids=[4])
    assert after[0, 0] == vlm(ids, mask, pixels).logits[0, -1].argmax()
    assert not torch.equal(after, before)
    vlm.train()
    vlm(ids, mask, pixels, labels).loss.backward()
    plain = [p.grad.clone() for p in vlm.parameters() if p.requires_grad]
    vlm.zero_grad()
    vlm.set_gradient_checkpointing(True)
    vlm(ids, mask, pixels, labels).loss.backward()
    again = [p.grad for p in vlm.parameters() if p.requires_grad]
    assert plain
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, again, strict=True))


def test_an_expression_must_match_the_whole_name():
    vlm = pico_vlm()
    pattern = r"llm\..*layers\.1\.self_attn\.(q_proj|v_proj)"
    tune.apply(vlm, _tune(llm="lora"), _lora(targets=pattern))
    found = {name.split(".lora_")[0].removeprefix("llm.base_model.model.") for name in _trained(vlm)}
    assert found == {f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")}
    with pytest.raises(ConfigError, match=r"matches no linear layer.*\n.*\n.*llm\.model\.layers\.0"):
        tune.apply(pico_vlm(), _tune(llm="lora"), _lora(targets="q_proj"))
    with pytest.raises(ConfigError, match="no regular expression"):
        tune.apply(pico_vlm(), _tune(llm="lora"), _lora(targets="llm(("))


def test_a_module_trains_whole_beside_the_adapters():
    vlm = pico_vlm()
    tune.apply(vlm, _tune(llm="lora"), _lora(modules_to_save=["embed_tokens"]))
    (whole,) = [name for name in _trained(vlm) if "lora_" not in name]
    assert whole == "llm.base_model.model.model.embed_tokens.weight"
    assert tune.adapter_config(vlm.llm)["modules_to_save"] == ["embed_tokens"]
    tune.apply(vlm, _tune(llm="lora"), _lora(modules_to_save=["embed_tokens"]))  # trained on
    with pytest.raises(ConfigError, match=r"modules_to_save \['embed_tokens'\]"):
        tune.apply(vlm, _tune(llm="lora"), _lora())


@pytest.mark.parametrize(
    ("module", "words"),
    [("embed_token", "did you mean 'embed_tokens'"), ("q_proj", "has adapters and is to train whole")],
)
def test_a_module_that_cannot_is_named(module, words):
    with pytest.raises(ConfigError, match=words):
        tune.apply(pico_vlm(), _tune(llm="lora"), _lora(modules_to_save=[module]))


@pytest.mark.parametrize(
    ("targets", "last"),
    [(r"llm\..*\.self_attn\.(q|k|v|o)_proj", None), (["q_proj", "v_proj"], None), ("all-linear", 9)],
)
def test_an_adapter_on_many_layers_is_trained_further_by_the_same_values(targets, last):
    """PEFT shortens a list of 20 names and more, so the names it keeps are not those it was given."""
    many = LlamaConfig(vocab_size=320, **LLAMA | {"num_hidden_layers": 12})
    vlm = VLM(LlamaForCausalLM(many), pico_vlm().tower, pico_vlm().connector)
    asked = Tune(llm="lora", tower="freeze", connector="freeze", llm_last=last)
    tune.apply(vlm, asked, _lora(targets=targets))
    trained = _trained(vlm)
    tune.apply(vlm, asked, _lora(targets=targets))
    assert _trained(vlm) == trained
    for other, n in (("all-linear", None), (["up_proj"], None), (targets, 8)):
        with pytest.raises(ConfigError, match="adapter of another shape: target_modules"):
            tune.apply(vlm, asked.model_copy(update={"llm_last": n}), _lora(targets=other))


@pytest.mark.parametrize("pattern", [r"\p{L}+_proj", "([a-z_.0-9]+)*X"])
def test_a_pattern_that_re_cannot_bear_is_refused_before_peft_sees_it(pattern):
    with pytest.raises(ConfigError, match="cannot be compared"):
        tune.apply(pico_vlm(), _tune(llm="lora"), _lora(rank_pattern={pattern: 2}))
    shape = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "alpha_pattern": {pattern: 2.0}}
    with pytest.raises(ConfigError, match="cannot be compared"):
        tune.wrap(pico_vlm().llm, shape)
