"""Biases trained beside an adapter: saved with it, loaded with it, merged with it."""

import pytest
import torch

from tests.pico import IMAGE_SIZE, N_PATCHES, pico_llm, pico_loaded
from tests.unit.models import merging
from vlmrun.config.schema import Lora, Tune
from vlmrun.formats.load import load
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.merging.merge import merge
from vlmrun.model import tune
from vlmrun.weights import native

HOW = {"dtype": torch.float32, "attention": "sdpa"}


def _logits(vlm):
    ids = torch.tensor([[0, *[IMAGE_TOKEN] * N_PATCHES, 7, 9, 4]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return vlm(ids, torch.ones_like(ids), pixels).logits


@pytest.mark.parametrize(("bias", "n_biases"), [("none", 0), ("lora_only", 2), ("all", 8)])
def test_trained_biases_come_back_and_are_merged(tmp_path, bias, n_biases):
    pico_llm(tmp_path / "pico/llm", attention_bias=True)
    loaded = pico_loaded(tmp_path / "pico")
    lora = Lora(r=2, alpha=4.0, dropout=0.0, targets=["q_proj"], bias=bias, modules_to_save=[])
    tune.apply(loaded.vlm, Tune(llm="lora", tower="freeze", connector="full"), lora)
    trained = {n: p for n, p in loaded.vlm.llm.named_parameters() if p.requires_grad}
    assert sum("lora_" not in name for name in trained) == n_biases
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    native.save(
        tmp_path / "weights",
        loaded,
        template={},
        image_aspect="square",
        tensors={},
        adapter=(tune.adapter_config(loaded.vlm.llm), trained),
    )
    expected = _logits(loaded.vlm)
    again = load(tmp_path / "weights", **HOW)
    assert torch.equal(_logits(again.vlm), expected)
    assert torch.allclose(_logits(load(tmp_path / "weights", merge_adapter=True, **HOW).vlm), expected, atol=1e-4)
    summary = merge(merging(), [tmp_path / "weights"], tmp_path / "merged/weights")
    assert summary["merged"] == 2 + n_biases
    assert torch.allclose(_logits(load(tmp_path / "merged", **HOW).vlm), expected, atol=1e-4)
