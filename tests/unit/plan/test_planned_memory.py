"""Memory terms against what one computes by hand, and rules that hold whatever the numbers are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.plan.made import hardware, llava_7b, stage
from vlmrun.ids import FP32_LOGITS_GPU
from vlmrun.plan import memory
from vlmrun.plan.activations import Batch
from vlmrun.plan.loss import Numbers, _chunked, _plain

SHAPES = llava_7b()
BATCH = Batch(sequences=16, length=2048, supervised=16 * 1000, squares=16)
# Vicuna-7B, CLIP-L/14-336 and LLaVA's projector (1024 -> 4096 -> 4096 with biases).
LLM, TOWER, CONNECTOR = 6_738_415_616, 303_507_456, 1024 * 4096 + 4096 + 4096 * 4096 + 4096
TRAINED = LLM + CONNECTOR


def peak(batch: Batch = BATCH, *, on: dict[str, Any] | None = None, **changes: Any) -> memory.Memory:
    return memory.peak(SHAPES, stage(**changes), hardware(**(on or {})), batch)


def close(n_bytes: int, expected: float) -> bool:
    return abs(n_bytes - expected) <= 8  # a rank's share is rounded up


def test_zero3_of_a_whole_7b_model_on_eight_gpus() -> None:
    terms = peak(gradient_checkpointing=True).terms
    assert close(terms["weights"], 2 * (LLM + TOWER + CONNECTOR) / 8)
    assert close(terms["fp32 masters"], 4 * TRAINED / 8)
    assert close(terms["optimizer"], 8 * TRAINED / 8)
    assert close(terms["gradients"], 4 * TRAINED / 8)


def test_zero2_keeps_whole_weights_and_shares_the_rest() -> None:
    terms = peak(gradient_checkpointing=True, zero=2).terms
    assert close(terms["weights"], 2 * (LLM + TOWER + CONNECTOR))
    assert close(terms["optimizer"], 8 * TRAINED / 8)


def test_a_single_gpu_without_zero_in_fp32_is_sixteen_bytes_a_parameter() -> None:
    found = peak(zero=0, on={"precision": "fp32", "ranks_per_node": 1}, gradient_checkpointing=True)
    states = sum(found.terms[name] for name in ("weights", "optimizer"))
    assert states == 4 * (LLM + TOWER + CONNECTOR) + 8 * TRAINED
    assert "fp32 masters" not in found.terms


def test_checkpoints_of_a_block_are_its_input() -> None:
    few, many = (peak(gradient_checkpointing=recomputed) for recomputed in (True, False))
    rows = BATCH.rows
    kept = 32 * rows * 4096 * 2
    norm = rows * (4096 * 4 + 8 + 4096 * 2 * 2)  # its input in fp32, root, normalised rows, and those the head reads
    assert few.terms["activations: LLM"] == kept + norm
    # A block in bf16 with its mask: norms 24 h, attention 8 h, MLP 8 i bytes a row, roots, log-sums; the mask 2 L.
    block = rows * (24 * 4096 + 8 * 11008 + 2 * 4 + 4 * 32 + 2 * 2048)
    assert many.terms["activations: LLM"] == 32 * block + norm


def test_no_term_is_left_out_because_another_moment_is_fuller() -> None:
    found = memory.peak(SHAPES, stage(gradient_checkpointing=True), hardware(), BATCH)
    assert found.moment == "first block"
    assert not found.terms.keys() & found.elsewhere.keys()
    assert {"activations: tower", "logits and loss", "update"} <= found.elsewhere.keys()
    # A trained head's gradient in fp32 alone is larger than a chunk of logits.
    assert 4 * 32000 * 4096 < found.elsewhere["logits and loss"] < found.terms["activations: LLM"]


def test_the_chunk_of_logits_is_all_there_is_of_them() -> None:
    plain = _plain(SHAPES.llm, BATCH, 2)
    chunked = _chunked(SHAPES.llm, BATCH, Numbers(2, False, False), chunk=256, trained=False)
    assert plain.backward == 2 * BATCH.rows * 32000 * 2 == 4_194_304_000
    assert chunked.forward == BATCH.supervised * 4096 * 2 + 256 * 32000 * 2 + 2 * FP32_LOGITS_GPU * 4
    assert chunked.kept == BATCH.supervised * 4096 * 2


def test_a_head_that_learns_brings_its_gradient() -> None:
    few, many = (dataclasses.replace(BATCH, supervised=n) for n in (2 * 4096, 2 * 4096 + 1))
    numbers = Numbers(2, False, False)
    frozen, trained = (_chunked(SHAPES.llm, few, numbers, chunk=256, trained=learns) for learns in (False, True))
    assert trained.kept - frozen.kept == 2 * 32000 * 4096
    assert trained.forward - frozen.forward == (2 * 4096 - 256) * 32000 * 2  # all logits at once
    frozen, trained = (_chunked(SHAPES.llm, many, numbers, chunk=256, trained=learns) for learns in (False, True))
    assert trained.kept - frozen.kept == 4 * 32000 * 4096
    assert trained.backward - frozen.backward == 2 * 32000 * 4096
    assert trained.forward == frozen.forward


def test_quantised_weights_take_half_a_byte_and_their_scales() -> None:
    lora = {"r": 16, "alpha": 32.0, "dropout": 0.05, "targets": "all-linear", "bias": "none", "modules_to_save": []}
    tune = {"llm": "lora", "tower": "freeze", "connector": "full"}
    whole = peak(zero=2, tune=tune, lora=lora).terms["weights"]
    quant = {"bits": 4, "type": "nf4", "double": True}
    packed = peak(zero=2, tune=tune | {"llm": "qlora"}, lora=lora, quant=quant).terms["weights"]
    linears = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert whole - packed == pytest.approx(linears * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)), rel=1e-6)


def test_offload_moves_masters_and_moments_to_the_computer() -> None:
    here, there = (peak(offload=place, gradient_checkpointing=True) for place in ("none", "cpu"))
    assert here.host == 0
    assert close(there.host, (4 + 8 + 4) * TRAINED / 8 + 2 * (LLM + TOWER + CONNECTOR) / 8)
    assert {"fp32 masters", "optimizer", "weights"} & set(there.terms) == set()
    assert there.total < here.total


def test_the_allowance_is_for_gpus_only() -> None:
    assert peak().allowance > memory.CONTEXT_BYTES
    assert peak(on={"gpu": "cpu", "precision": "fp32", "ranks_per_node": 1}, zero=2).allowance == 0


@settings(max_examples=60, deadline=None)
@given(
    zero=st.sampled_from([1, 2, 3]),
    recomputed=st.booleans(),
    sequences=st.integers(1, 8),
    length=st.integers(64, 2048),
    tower=st.sampled_from(["freeze", "full"]),
    llm=st.sampled_from(["freeze", "full"]),
)
def test_more_never_needs_less(zero: int, recomputed: bool, sequences: int, length: int, tower: str, llm: str) -> None:
    tune = {"llm": llm, "tower": tower, "connector": "full"}
    batch = Batch(sequences, length, sequences * length // 2, sequences)
    found = peak(batch, zero=zero, tune=tune, gradient_checkpointing=recomputed)
    assert all(n_bytes > 0 for n_bytes in found.terms.values())
    assert found.tensors == max(found.moments.values())
    for field in ("sequences", "length", "supervised", "squares"):
        more = dataclasses.replace(batch, **{field: getattr(batch, field) + 1})
        assert peak(more, zero=zero, tune=tune, gradient_checkpointing=recomputed).total >= found.total
    assert peak(batch, zero=zero, tune=tune, gradient_checkpointing=False).tensors >= found.tensors * 0.999


def test_sharing_more_needs_less() -> None:
    totals = [peak(zero=zero, gradient_checkpointing=True).total for zero in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    two, eight = (peak(gradient_checkpointing=True, on={"ranks_per_node": n}).total for n in (2, 8))
    assert two > eight
