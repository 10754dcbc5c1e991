"""Every recorded training run, replayed through vlmrun's own trainer: order, losses, rates, norms, final weights.

The tolerances are those of the recordings' README: the same run under other thread counts and attention kernels moved
by 1.5e-6 in loss and 8e-6 in weights.
"""

import json

import pytest

from tests.integration import ranks as forked
from tests.parity.golden import CASES, IS_PART, need
from tests.parity.replay import RUNS, job_of, kind_of, our_name, recorded_runs, replay

LOSS, WEIGHT, NORM = 1e-5, 5e-5, 1e-4
# Sums in fp16 differ by a unit in the last place from CPU to CPU: 1.8e-5 measured on another CPU than the recordings'.
LOSS_OF_HALF_TOWER = 5e-5


def test_there_are_runs():
    need(CASES / RUNS)
    assert recorded_runs() or IS_PART


@pytest.mark.parametrize("run", recorded_runs(), ids=lambda run: run.name)
def test_a_run_is_replayed(run, tmp_path):
    recorded = json.loads((run / "result.json").read_text("utf-8"))
    job = job_of(tmp_path, run)
    (found,) = forked.run(replay, 1, job.to_json(), str(run), group=False)
    assert found["order"] == recorded["order"]
    close = LOSS_OF_HALF_TOWER if job.stage.compat.fp16_tower else LOSS
    assert found["losses"] == pytest.approx(recorded["per_step_loss"], abs=close)
    assert found["norms"] == pytest.approx(recorded["grad_norms"], rel=NORM)
    base = recorded["groups"][0]["lr_initial"]
    assert [rate / job.stage.optim.lr for rate in found["lrs"]] == pytest.approx(
        [rates[0] / base for rates in recorded["lrs"]], rel=1e-12
    )
    assert max(found["off"].values()) < WEIGHT
    # Upstream also lists what never gets a gradient: the layers behind the selected one.
    assert set(found["groups"]) <= {our_name(name) for name in recorded["trainable"]}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune", "lora"])
def test_two_ranks_under_zero_2_follow_one_process(kind, tmp_path):
    run = next((run for run in recorded_runs() if kind_of(run) == kind), None)
    if run is None:
        pytest.skip(f"no recorded run of this kind: {kind}")
    # Cut alike on one rank and on two: micro batches of two, so that the mean of means is one of the same parts.
    cut = {"micro_batch": 2, "max_steps": 8, "save_steps": 100}
    compat = job_of(tmp_path, run).stage.compat.model_dump() | {"transformers_order": None}
    one = job_of(tmp_path / "one", run, compat=compat, **cut)
    two = job_of(tmp_path / "two", run, compat=compat, engine="deepspeed", zero=2, ranks_per_node=2, **cut)
    (alone,) = forked.run(replay, 1, one.to_json(), str(run), group=False)
    together = forked.run(replay, 2, two.to_json(), str(run))[0]
    assert together["order"] == alone["order"]
    assert together["losses"] == pytest.approx(alone["losses"], abs=LOSS)
    assert together["norms"] == pytest.approx(alone["norms"], rel=NORM)
