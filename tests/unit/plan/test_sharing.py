"""What ranks share, keep elsewhere or pack together, against what one computes by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.unit.plan.made import hardware, llava_7b, stage
from vlmrun.arch.linears import Linear
from vlmrun.config.schema import Packing
from vlmrun.hardware import gpus
from vlmrun.plan import advice, disk, memory, time
from vlmrun.plan import stage as stages
from vlmrun.plan.activations import Batch
from vlmrun.plan.lengths import Samples
from vlmrun.plan.time import Rates

SHAPES = llava_7b()
BATCH = Batch(sequences=16, length=2048, supervised=16 * 1000, squares=16)
LLM, TOWER, CONNECTOR = 6_738_415_616, 303_507_456, 20_979_712
TRAINED = LLM + CONNECTOR
BLOCKS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # weights of the linear layers, which AutoTP cuts
MIX = Samples(n=665_298, mean=776, longest=2048, text=200, pictures=1, squares=1, most_squares=1, image_tokens=576)
PACKING = {"length": 4096, "method": "even_fit", "window": 4096}


def peak(batch: Batch = BATCH, *, on: dict[str, Any] | None = None, **changes: Any) -> memory.Memory:
    return memory.peak(SHAPES, stage(gradient_checkpointing=True, **changes), hardware(**(on or {})), batch)


def test_two_ranks_that_share_the_layers_hold_half_of_their_linear_weights() -> None:
    found = peak(zero=2, on={"tensor_parallel": 2}).terms
    piece = LLM - BLOCKS // 2
    assert found["weights"] == 2 * (piece + TOWER + CONNECTOR)
    assert found["optimizer"] == 8 * (piece + CONNECTOR) // 4  # ZeRO shares among the other four pairs


def test_the_residual_stream_stays_whole_and_heads_and_mlp_are_cut() -> None:
    cut = SHAPES.llm.cut(2)
    assert (cut.hidden, cut.heads, cut.intermediate, cut.vocab) == (4096, 16, 5504, 32000)
    assert {(linear.n_in, linear.n_out) for linear in cut.linears} == {
        (4096, 2048), (2048, 4096), (4096, 5504), (5504, 4096)
    }  # fmt: skip
    # A bias behind a sum over ranks is whole on each of them, one before it is cut.
    biased = dataclasses.replace(
        SHAPES.llm, linears=(Linear("q_proj", 64, 64, True), Linear("o_proj", 64, 64, True))
    ).cut(2)
    assert [linear.n_parameters for linear in biased.linears] == [64 * 32 + 32, 32 * 64 + 64]


def test_two_ranks_that_share_sequences_keep_half_of_the_checkpoints() -> None:
    whole, half = (peak(on={"sequence_parallel": n}).terms["activations: LLM"] for n in (1, 2))
    rows, h = 16 * (1024 + 1), 4096
    norm = rows * (h * 4 + 8 + h * 2 * 2)
    embeddings = (16 * 2048 - rows) * h * 2  # all are made, and the piece is a view of them
    assert half == 32 * rows * h * 2 + norm + embeddings
    assert half < whole * 0.55


def test_fsdp_keeps_fp32_pieces_and_gathers_in_bf16() -> None:
    terms = peak(engine="fsdp").terms
    assert terms["weights"] == pytest.approx(4 * (LLM + TOWER + CONNECTOR) / 8, abs=8)
    assert terms["optimizer"] == pytest.approx(8 * TRAINED / 8, abs=8)
    assert "fp32 masters" not in terms
    block = BLOCKS // 32 + 2 * 4096
    root = 2 * 32000 * 4096 + 4096 + CONNECTOR
    assert terms["gathered weights"] == 2 * (root + 2 * block)  # the next block is gathered ahead
    assert peak(engine="fsdp", zero=2).moments["loss"] - peak(engine="fsdp").moments["loss"] == 2 * (
        LLM + TOWER + CONNECTOR - root - 2 * block
    )
    offloaded = peak(engine="fsdp", offload="cpu")
    assert offloaded.host == pytest.approx((4 * (LLM + TOWER + CONNECTOR) + 12 * TRAINED) / 8, abs=24)
    assert {"weights", "optimizer", "gradients"} & set(offloaded.terms) == set()


def test_a_drive_holds_what_is_offloaded_to_it() -> None:
    found = peak(offload="nvme")
    assert found.host == 0
    assert found.drive == pytest.approx((16 * TRAINED + 2 * (LLM + TOWER + CONNECTOR)) / 8, abs=40)
    split = stage().deepspeed.model_copy(update={"offload_param": "cpu"}).model_dump()
    both = peak(offload="nvme", deepspeed=split)
    assert both.host == pytest.approx(2 * (LLM + TOWER + CONNECTOR) / 8, abs=8)
    assert both.host + both.drive == found.drive


def test_checkpoints_may_wait_in_the_computers_memory() -> None:
    here, there = (peak(offload_checkpoints=away) for away in (False, True))
    kept = 32 * BATCH.rows * 4096 * 2
    assert there.host - here.host == kept
    assert here.moments["loss"] - there.moments["loss"] == kept


def test_zero1_in_bf16_sends_a_flat_copy_in_both_types() -> None:
    # One rank has nobody to send it to, and DeepSpeed makes it all the same.
    for ranks in (8, 1):
        found = peak(zero=1, on={"ranks_per_node": ranks}).moments
        assert found["gradients are sent"] - found["update"] == 500_000_000 * (4 + 2)


def test_the_first_bucket_finds_the_whole_sum_of_gradients() -> None:
    for precision in ("fp32", "bf16"):
        assert "first bucket" in peak(zero=2, on={"precision": precision}).moments
    assert "first bucket" not in peak(zero=1).moments


def test_a_second_copy_of_the_weights_is_shared_by_a_node() -> None:
    numbers = stage().deepspeed.model_copy(update={"zero_hpz_partition_size": 4}).model_dump()
    more = peak(deepspeed=numbers).terms["weights"] - peak().terms["weights"]
    assert more == pytest.approx(2 * (LLM + TOWER + CONNECTOR) / 4, abs=8)


def test_packed_rows_are_full_of_pictures_and_text() -> None:
    one = stage(packing=PACKING, micro_batch=4)
    found = stages.batch_of(one, MIX)
    assert (found.sequences, found.length, found.squares) == (4, 4096, 4 * 7)  # 7 x 576 < 4096
    per_row = 4096 * 0.997 / 776
    assert found.supervised == 4 * (4096 - round(per_row * 576))
    assert time.steps(one, MIX) == int(665_298 * 2 / per_row) // 128
    whole = time.duration(SHAPES, one, hardware(), MIX, None, Rates(0.35, 2.0))
    assert whole is not None
    assert whole.tokens == pytest.approx(665_298 * 2 * 776, rel=0.001)


def test_sdpa_computes_a_packed_rows_square_and_flash_attention_does_not() -> None:
    one = stage(packing=PACKING)
    square, blocks = (
        time.per_sample(SHAPES, one, hardware(attention=attention), MIX).forward
        for attention in ("sdpa", "flash_attention_2")
    )
    assert square - blocks == pytest.approx(32 * 4 * 776 * (4096 - 776) * 4096)


def test_ranks_of_a_group_look_at_the_picture_each_for_itself() -> None:
    alone, pair = (time.per_sample(SHAPES, stage(), hardware(tensor_parallel=n), MIX) for n in (1, 2))
    assert (alone.forward, alone.backward) == (pair.forward, pair.backward)
    tower = 23 * (2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 577**2 * 1024)
    connector = 2 * 576 * (1024 * 4096 + 4096 * 4096)
    head = 2 * 4096 * 32000 * 200
    assert pair.repeated == pytest.approx(tower + 2 * connector + 3 * head)
    assert alone.repeated == 0
    of_sequences = time.per_sample(SHAPES, stage(), hardware(sequence_parallel=2), MIX)
    assert of_sequences.repeated == pytest.approx(tower + 2 * connector)


def test_evaluation_during_training_takes_time() -> None:
    asked = {"steps": 1000, "data": ["x"], "max_samples": 256, "generate": 0, "max_new_tokens": 8}
    one = stage(epochs=1.0, eval=asked)
    found = time.duration(SHAPES, one, hardware(), MIX, MIX, Rates(0.35, 2.0))
    assert found is not None
    forward = time.per_sample(SHAPES, one, hardware(), MIX).forward
    assert found.held_out == pytest.approx(6 * 256 * forward)  # 5197 steps: five times, and after the last
    assert found.flops == pytest.approx(found.samples * found.per_sample.total + found.held_out)
    endless = stage(epochs=1.0, eval={**asked, "max_samples": None})
    unknown = time.duration(SHAPES, endless, hardware(), MIX, dataclasses.replace(MIX, n=None), Rates(0.35, 2.0))
    assert unknown is not None
    assert unknown.held_out is None


def test_tensorfloat_makes_fp32_products_faster() -> None:
    slow, fast = (
        time.duration(SHAPES, stage(), hardware(precision="fp32", tf32=tf32), MIX, None, Rates(0.35, 2.0))
        for tf32 in (False, True)
    )
    assert slow is not None
    assert fast is not None
    assert slow.hours / fast.hours == pytest.approx(156 / 19.5)
    assert gpus.find("v100_32g").peak_flops("fp32", tf32=True) == 15.7e12


def test_micro_batches_are_cut_among_ranks_that_read_samples_of_their_own() -> None:
    on = hardware(tensor_parallel=2)
    found = advice.largest(
        stage(micro_batch=1, gradient_checkpointing=True), on, lambda one: memory.peak(SHAPES, one, on, BATCH)
    )
    assert found == 32  # 128 among four pairs


def test_advice_keeps_to_what_an_engine_can_do() -> None:
    def changes(on: dict[str, Any], **asked: Any) -> list[str]:
        where = hardware(gpu="a100_40g", **on)

        def planned(one: Any) -> memory.Memory:
            return dataclasses.replace(memory.peak(SHAPES, one, where, BATCH), terms={"weights": 2**60})

        found = advice.suggestions("x", stage(**asked), where, planned)
        return [override for suggestion in found for override in suggestion.overrides]

    assert not any("lora" in word for word in changes({"tensor_parallel": 2}))
    assert "stage.x.engine=deepspeed" in changes({}, engine="fsdp")
    assert "stage.x.offload_checkpoints=true" in changes({})


def test_checkpoints_of_shared_layers_repeat_what_is_whole() -> None:
    found = disk.train(SHAPES, stage(), hardware(tensor_parallel=2), 1000)
    assert found.checkpoint == 2 * (TRAINED - BLOCKS // 2) * (2 + 4 + 8)
    assert disk.train(SHAPES, stage(engine="fsdp"), hardware(), 1000).checkpoint == TRAINED * (4 + 8)


def test_zero1_in_fp32_keeps_whole_gradients_between_micro_batches() -> None:
    on = {"precision": "fp32"}
    once, often = (peak(zero=1, on=on, global_batch=n).moments for n in (128, 256))
    bucket = 4 * 4096**2 * 2  # twice where communication overlaps; it is not given back
    assert often["loss"] - once["loss"] == 4 * TRAINED + bucket
    assert often["backward ends"] == once["backward ends"]


def test_short_rows_fill_worse() -> None:
    """Rows of 2048 hold two samples of LLaVA's, sometimes three; rows twice as long more than twice as many."""
    made = [Packing(length=n, method="even_fit", window=4096) for n in (2048, 4096, 8192)]
    two, five, ten = (time.per_row(one, MIX) for one in made)
    assert two == pytest.approx(2048 * 0.841 / MIX.mean)
    assert five == pytest.approx(4096 * 0.997 / MIX.mean)
    assert ten == pytest.approx(2 * five)
