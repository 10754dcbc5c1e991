"""Several blocks that keep one input: the same numbers, fewer inputs kept."""

import pytest
import torch

from tests.pico import pico_vlm
from vlmrun.errors import ConfigError
from vlmrun.model import recompute_units


def gradients(vlm, n):
    llm = vlm.llm.train()
    if n:
        vlm.set_gradient_checkpointing(True)
        recompute_units.group(llm, n)
    ids = torch.arange(12).reshape(2, 6)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        loss = llm(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None}
    return loss.item(), found, sum(kept)


def test_units_give_the_gradients_of_single_blocks():
    results = {}
    for n in (0, 1, 2, 3):
        torch.manual_seed(0)
        results[n] = gradients(pico_vlm(), n)
    loss, wanted, _ = results[0]
    for n in (1, 2, 3):
        assert results[n][0] == loss
        assert results[n][1].keys() == wanted.keys()
        assert all(torch.equal(results[n][1][name], wanted[name]) for name in wanted), n
    assert results[2][2] < results[1][2] < results[0][2]


def test_an_llm_in_units_still_generates_with_its_cache():
    torch.manual_seed(0)
    vlm = pico_vlm()
    ids = torch.arange(6)[None]
    plain = vlm.llm.eval().generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    vlm.set_gradient_checkpointing(True)
    recompute_units.group(vlm.llm, 2)
    assert torch.equal(vlm.llm.eval().generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), plain)


def test_blocks_of_several_kinds_are_refused():
    vlm = pico_vlm()
    vlm.llm.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ConfigError, match="several kinds"):
        recompute_units.group(vlm.llm, 2)
