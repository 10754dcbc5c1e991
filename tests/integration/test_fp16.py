"""fp16 under DeepSpeed's loss scaling, for real: DeepSpeed refuses it on CPUs without instructions for it, not here."""

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import STAGE, compare, execute, make_job, rows, run, said, tensors, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import HELD_OUT, job_with, scores

pytestmark = pytest.mark.ranks

ALL = {"llm": "full", "tower": "full", "connector": "full"}


def _allowed(text):
    """Trains in fp16 on a CPU."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True
    return execute(text)


def _scaling(**changes):
    return STAGE["deepspeed"] | {"fp16": STAGE["deepspeed"]["fp16"] | changes}


def _job(folder, name, n=2, **changes):
    return make_job(folder, name, ranks_per_node=n, precision="fp16", tune=ALL, **({"max_steps": 6} | changes))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The reference, in fp32."""
    folder = tmp_path_factory.mktemp("fp16")
    return folder, run(folder, "plain", engine="plain", tune=ALL)


@pytest.mark.parametrize(
    "way",
    [{"zero": 1}, {"zero": 2}, {"zero": 3}, {"zero": 2, "tensor_parallel": 2}, {"zero": 3, "sequence_parallel": 2}],
    ids=str,
)
def test_fp16_follows_fp32_and_the_scale_grows(plain, way):
    folder, reference = plain
    name = "-".join(f"{key}{value}" for key, value in way.items())
    job = _job(folder, name, deepspeed=_scaling(initial_scale_power=8, loss_scale_window=2), **way)
    forked.run(_allowed, 2, job.to_json())
    compare(reference, job, loss_atol=1e-2, norm_rtol=2e-2)
    assert [row["loss_scale"] for row in rows(job)] == [256.0, 256.0, 256.0, 512.0, 512.0, 1024.0]
    assert {str(tensor.dtype) for tensor in tensors(job).values()} == {"torch.float16"}


@pytest.mark.parametrize("zero", [2, 3])
def test_what_overflows_is_left_out_and_told_until_the_scale_fits(tmp_path, zero):
    job = _job(tmp_path, "high", zero=zero, deepspeed=_scaling(initial_scale_power=24, hysteresis=1), max_steps=20)
    forked.run(_allowed, 2, job.to_json())
    overflows = [row["overflow"] for row in rows(job)]
    assert 3 < sum(overflows) < 15
    assert overflows == sorted(overflows, reverse=True), "first the overflows, then the updates"
    assert [row["loss_scale"] for row in rows(job)][: sum(overflows) + 1] == [
        2.0 ** (24 - n) for n in range(sum(overflows) + 1)
    ]
    assert "overflowed fp16 at loss scale 1.67772e+07" in said(job)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_run_that_only_overflows_stops_with_its_samples(tmp_path, zero):
    scaling = _scaling(initial_scale_power=25, min_loss_scale=2**24)
    job = _job(tmp_path, "never", zero=zero, deepspeed=scaling, max_steps=40, epochs=40.0)
    with pytest.raises(RankError, match=r"VlmrunError: error: 25 updates in a row overflowed fp16.*\n.*samples: r"):
        forked.run(_allowed, 2, job.to_json())
    assert len(rows(job)) == 24


def test_held_out_data_leave_no_trace(tmp_path):
    """The loss and the answers of a model in fp16, between updates that are scaled."""
    changes = {"n": 2, "zero": 3, "precision": "fp16", "deepspeed": _scaling(initial_scale_power=8)}
    found = []
    for name, held_out in {"without": None, "with": HELD_OUT}.items():
        job = job_with(tmp_path, name, eval=held_out, **changes)
        forked.run(_allowed, 2, job.to_json())
        found.append((rows(job), weights(job)))
    assert found[0] == found[1]
    assert [row["step"] for row in scores(job)] == [2, 4, 6]
    assert scores(job)[-1]["loss"] == pytest.approx(rows(job)[-1]["loss"], abs=1.0)


def test_a_resumed_run_goes_on_at_the_scale_it_had(tmp_path):
    changes = {"zero": 2, "deepspeed": _scaling(initial_scale_power=8, loss_scale_window=2), "save_steps": 3}
    whole = _job(tmp_path, "whole", **changes, save_total_limit=9)
    forked.run(_allowed, 2, whole.to_json())
    job = _job(tmp_path, "again", **changes)
    (job.path / "checkpoints").mkdir()
    (whole.path / "checkpoints" / "step-3").rename(job.path / "checkpoints" / "step-3")
    forked.run(_allowed, 2, job.to_json())
    assert rows(job) == rows(whole)[3:]
    assert weights(job) == weights(whole)
