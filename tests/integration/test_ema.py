"""The average of weights: right, the same on every number of ranks and engine, and resumed to the same bits."""

import pytest
import torch
from safetensors.torch import load_file

from tests.integration import ranks as forked
from tests.integration.jobs import make_job, rows, run, tensors, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import HELD_OUT, _loss_of, _stopped_at, finish, job_with

pytestmark = pytest.mark.ranks

EMA = {"decay": 0.5, "every": 1, "result": True}
WAYS = {
    "ZeRO-0": {"zero": 0},
    "ZeRO-1": {"zero": 1},
    "ZeRO-2": {"zero": 2},
    "ZeRO-3": {"zero": 3},
    "FSDP2": {"engine": "fsdp", "zero": 3},
    "ZeRO-2, offloaded": {"zero": 2, "offload": "cpu"},
    "ZeRO-3, offloaded": {"zero": 3, "offload": "cpu"},
}


def test_the_average_is_that_of_the_weights_after_each_update(tmp_path):
    """By hand, from the files that it starts from and runs that end after one and after two updates."""
    changes = {"engine": "plain", "schedule": "constant", "warmup_ratio": 0.0}
    first, second = (tensors(run(tmp_path, f"{n}", max_steps=n, **changes)) for n in (1, 2))
    averaged = tensors(run(tmp_path, "averaged", max_steps=2, ema=EMA, **changes))
    start = load_file(tmp_path / "parts" / "llm" / "model.safetensors")
    assert len(start) > 10
    for name, before in start.items():
        one, two, average = (found[f"llm.{name}"] for found in (first, second, averaged))
        assert not torch.equal(one, two), name
        assert torch.allclose(average, 0.25 * before + 0.25 * one + 0.5 * two, atol=1e-6), name


def test_every_nth_update_is_averaged_and_training_is_not_changed(tmp_path):
    plain = run(tmp_path, "plain", engine="plain")
    beside = run(tmp_path, "beside", engine="plain", ema=EMA | {"every": 4, "result": False})
    assert (rows(plain), weights(plain)) == (rows(beside), weights(beside))


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_have_the_average_of_one(tmp_path, way):
    alone = run(tmp_path, "alone", engine="plain", max_steps=4, ema=EMA)
    shared = run(tmp_path, "shared", 2, max_steps=4, ema=EMA, micro_batch=1, **WAYS[way])
    ours, theirs = tensors(alone), tensors(shared)
    live = tensors(run(tmp_path, "live", engine="plain", max_steps=4))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4), name
    assert any(not torch.allclose(tensor, live[name], atol=1e-4) for name, tensor in ours.items())


@pytest.mark.parametrize("way", ["ZeRO-2", "ZeRO-3"])
def test_bf16_weights_have_the_rounded_average(tmp_path, way):
    job = run(tmp_path, "bf16", 2, max_steps=4, ema=EMA, micro_batch=1, precision="bf16", **WAYS[way])
    alone = tensors(run(tmp_path, "alone", engine="plain", max_steps=4, ema=EMA))
    for name, tensor in tensors(job).items():
        assert torch.allclose(tensor.float(), alone[name].float(), atol=2e-2), name


@pytest.mark.parametrize("way", ["ZeRO-2", "ZeRO-3", "FSDP2"])
def test_a_resumed_run_has_the_same_average(tmp_path, way):
    changes = {"max_steps": 4, "ema": EMA, "micro_batch": 1, **WAYS[way]}
    whole = run(tmp_path, "whole", 2, **changes)
    job = make_job(tmp_path, "stopped", ranks_per_node=2, **changes)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 2, job.to_json(), 2)
    finish(job, 2)
    assert weights(job) == weights(whole)


def test_another_number_of_ranks_reads_the_pieces(tmp_path):
    changes = {"max_steps": 4, "ema": EMA, "micro_batch": 1, "engine": "fsdp", "zero": 3}
    whole = run(tmp_path, "whole", 2, **changes)
    job = make_job(tmp_path, "stopped", ranks_per_node=2, **changes)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 2, job.to_json(), 2)
    alone = job.model_copy(update={"hardware": job.hardware.model_copy(update={"ranks_per_node": 1})})
    forked.run(_alone, 1, alone.to_json())
    for name, tensor in tensors(whole).items():
        assert torch.allclose(tensor, tensors(alone)[name], atol=1e-4), name


def _alone(text):
    from tests.integration.jobs import execute

    return execute(text)


def test_the_score_is_that_of_the_average(tmp_path):
    asked = HELD_OUT | {"max_samples": None, "generate": 0, "steps": 6}
    job = job_with(tmp_path, "scored", engine="plain", eval=asked, ema=EMA)
    summary = finish(job)
    (reference,) = forked.run(_loss_of, 1, job.to_json(), group=False)
    assert summary["eval_loss"] == pytest.approx(reference, abs=1e-5)
