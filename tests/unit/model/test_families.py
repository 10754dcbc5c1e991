"""Causal LMs of other families than Llama, through the same loading, splice and generation."""

import pytest
import torch

from tests.pico import pico_vlm
from vlmrun.model.connectors.mlp import MLP
from vlmrun.model.llm import load
from vlmrun.model.vlm import IMAGE_TOKEN, VLM

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
FAMILIES = {
    "qwen2": COMMON | {"num_key_value_heads": 2},
    "mistral": COMMON | {"num_key_value_heads": 2},
    "phi": COMMON,
    "phi3": COMMON | {"num_key_value_heads": 4, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 128},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_through_the_splice_and_generates(family):
    torch.manual_seed(0)
    parts = pico_vlm()
    loaded = load(
        None, {"model_type": family, **FAMILIES[family]}, "builtin:micro-llm", dtype=torch.float32, attention="sdpa"
    )
    vlm = VLM(loaded.model, parts.tower, MLP(parts.tower.hidden_dim, 32))
    n = vlm.image_tokens
    ids = torch.tensor([[5] + [IMAGE_TOKEN] * n + [6, 7], [5] + [IMAGE_TOKEN] * n + [8, 9]])
    pixels = torch.randn(2, 3, vlm.image_size, vlm.image_size)
    labels = ids.masked_fill(ids == IMAGE_TOKEN, -100)
    out = vlm(ids, torch.ones_like(ids), pixels, labels)
    assert out.logits.shape == (2, n + 3, 512)
    out.loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vlm.connector.parameters()
    )
    vlm.eval()
    made = vlm.generate(ids, torch.ones_like(ids), pixels, max_new_tokens=3, eos_ids=[2])
    logits = vlm(ids, torch.ones_like(ids), pixels).logits
    assert made[:, 0].tolist() == logits[:, -1].argmax(-1).tolist()
