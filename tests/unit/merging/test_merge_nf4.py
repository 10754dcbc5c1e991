"""Adapters trained on 4-bit weights: saved beside the full-precision LLM, loaded in 4 bits, merged as trained."""

import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from tests.pico import NF4, WIDE, pico_llm, pico_loaded
from tests.unit.models import add_lora, logits, merging, save
from vlmrun.errors import CheckpointError
from vlmrun.formats.load import describe, load
from vlmrun.merging.merge import merge
from vlmrun.weights import adapter as adapters
from vlmrun.weights.reader import Reader

HOW = {"dtype": torch.float32, "attention": "sdpa"}
# fp32: two ways to the same sum, W x + s B (A x) and (W + s B A) x. Logits are of size 1 to 10.
ATOL = 1e-4


def _stage(tmp_path, dtype=torch.float32, **lora):
    pico_llm(tmp_path / "pico/llm", **WIDE)
    loaded = pico_loaded(tmp_path / "pico", quantized=NF4, dtype=dtype)
    add_lora(loaded, 3, **lora)
    return loaded, save(tmp_path / "qlora", loaded, "connector", adapter=True)


def _is_packed(loaded):
    return any(isinstance(module, Linear4bit) for module in loaded.vlm.llm.modules())


def test_the_llm_is_kept_in_full_precision_and_comes_back_in_four_bits(tmp_path):
    loaded, stage = _stage(tmp_path)
    assert describe(stage)["quantized"] == NF4
    kept, source = Reader(stage / "weights/llm"), Reader(tmp_path / "pico/llm")
    assert kept.names() == source.names()
    assert all(torch.equal(kept.get(name), source.get(name)) for name in kept.names())
    assert "quantization_config" not in json.loads((stage / "weights/llm/config.json").read_text())
    again = load(stage, **HOW)
    assert _is_packed(again)
    assert again.quantized == NF4
    assert torch.equal(logits(again), logits(loaded))
    assert not any(p.requires_grad for p in again.vlm.llm.parameters())


@pytest.mark.parametrize("lora", [{}, {"r": 3, "alpha": 5.0, "targets": ["q_proj"]}, {"dora": True}])
def test_the_merged_model_answers_as_the_one_that_was_trained(tmp_path, lora):
    loaded, stage = _stage(tmp_path, **lora)
    summary = merge(merging(), [stage], tmp_path / "merged/weights")
    merged = load(tmp_path / "merged", **HOW)
    assert summary == {"tensors": 21, "merged": 2 if "targets" in lora else 14, "base": "4 bits, dequantized"}
    assert describe(tmp_path / "merged") == describe(stage) | {"adapter": None, "quantized": None}
    assert not _is_packed(merged)
    assert "quantization_config" not in json.loads((tmp_path / "merged/weights/llm/config.json").read_text())
    assert torch.allclose(logits(merged), logits(loaded), atol=ATOL)
    again = load(stage, merge_adapter=True, **HOW)
    assert not _is_packed(again)
    state = merged.vlm.llm.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.vlm.llm.state_dict().items())


def test_merging_into_the_full_weights_is_another_model_and_is_said(tmp_path):
    """Guards the tolerance above, too: the other way is far outside it."""
    loaded, stage = _stage(tmp_path)
    summary = merge(merging(base="full"), [stage], tmp_path / "other/weights")
    assert summary["base"] == "full precision, not what was trained on"
    assert not torch.allclose(logits(load(tmp_path / "other", **HOW)), logits(loaded), atol=100 * ATOL)
    name = "model.layers.0.mlp.up_proj.weight"
    full, adapter = Reader(stage / "weights/llm").get(name), adapters.Adapter(stage / "weights/adapter")
    found = Reader(tmp_path / "other/weights/llm").get(name)
    assert torch.equal(found, full + adapter.delta(name, full))


def test_a_bf16_training_merges_on_the_weights_it_computed_with(tmp_path):
    loaded, stage = _stage(tmp_path, torch.bfloat16, targets=["q_proj"])
    merge(merging(), [stage], tmp_path / "merged/weights")
    merged = Reader(tmp_path / "merged/weights/llm")
    from bitsandbytes.functional import dequantize_4bit

    packed = loaded.vlm.llm.get_base_model().model.layers[1].mlp.up_proj.weight
    ours = merged.get("model.layers.1.mlp.up_proj.weight")
    assert ours.dtype == torch.float32, "the type of the file"
    assert torch.equal(ours, dequantize_4bit(packed.data, packed.quant_state).float())
    assert describe(stage)["dtype"] == "bf16"


def test_merging_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Only tensors being worked on are alive: each is rounded once, when it is its turn, and none is kept."""
    import weakref

    from vlmrun.model import quantize

    _, stage = _stage(tmp_path, targets=["q_proj"])
    original, made, alive = quantize.rounded, [], []

    def watched(weight, dtype, kind):
        alive.append(sum(reference() is not None for reference in made))
        result = original(weight, dtype, kind)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(quantize, "rounded", watched)
    merge(merging(), [stage], tmp_path / "merged/weights")
    assert len(made) == 14
    assert max(alive) <= 1


def test_weights_under_other_names_than_the_modules_are_refused(tmp_path, monkeypatch):
    from vlmrun.model import quantize

    _, stage = _stage(tmp_path)
    monkeypatch.setattr(quantize, "layers", lambda _folder, _kind: frozenset({"model.experts.w1.weight"}))
    with pytest.raises(CheckpointError, match=r"1 weights that were quantized for training(.|\n)*experts.w1"):
        merge(merging(), [stage], tmp_path / "merged/weights")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_on_plain_weights_needs_no_rounding(tmp_path, make):
    stage = make("lora", 3, adapter=True)
    assert describe(stage)["quantized"] is None
    base = adapters.trained_base(stage / "weights", describe(stage))
    weight = torch.randn(4, 4)
    assert base("model.layers.0.self_attn.q_proj.weight", weight) is weight
