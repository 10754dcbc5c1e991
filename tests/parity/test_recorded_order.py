"""The grouped order of samples against the recorded sampler, both epochs, and its refusals."""

import torch

from tests.parity.golden import cases
from vlmrun.data.order import length_groups, modality_groups
from vlmrun.errors import DataError


def test_the_order_is_the_recorded_one():
    compared = 0
    for case in cases("g6_optim/sampler.jsonl.gz"):
        lengths = case["lengths"] if case["group_by_modality"] else [abs(n) for n in case["lengths"]]
        groups = modality_groups if case["group_by_modality"] else length_groups
        generator = torch.Generator().manual_seed(case["seed"])
        try:
            first = groups(lengths, case["batch_size"], case["world_size"], generator)
        except DataError:
            assert case["result"] == "error", case["name"]
            continue
        assert case["result"] == "ok", case["name"]
        assert first == case["indices"], case["name"]
        second = groups(lengths, case["batch_size"], case["world_size"], generator)
        assert second == case["second_epoch_indices"], case["name"]
        compared += 1
    assert compared
