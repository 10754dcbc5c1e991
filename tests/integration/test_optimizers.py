"""Other optimizers are AdamW: each against torch's own, and resumed to the same bits."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import compare, losses, make_job, rows, run, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import _stopped_at, finish

pytestmark = pytest.mark.ranks

WAYS = {"plain": (1, {"engine": "plain"}), "ZeRO-2": (2, {"zero": 2, "micro_batch": 1})}
WAYS["ZeRO-3"] = (2, {"zero": 3, "micro_batch": 1})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["paged_adamw", "adamw_8bit"])
def test_bitsandbytes_trains_as_torch_does(tmp_path, way, name):
    """In 32 bits the same, in 8 bits nearly; on a CPU paged state does not move."""
    n, changes = WAYS[way]
    reference = run(tmp_path, "reference", n, **changes)
    other = run(tmp_path, "other", n, optimizer=name, **changes)
    if name == "paged_adamw":
        compare(reference, other, loss_atol=1e-4, norm_rtol=1e-3)
    else:
        assert losses(other) == pytest.approx(losses(reference), abs=0.05)
        assert rows(other)[-1]["loss"] != rows(reference)[-1]["loss"]


@pytest.mark.parametrize("way", ["plain", "ZeRO-2"])
def test_state_in_8_bits_resumes_to_the_same_bits(tmp_path, way):
    n, changes = WAYS[way]
    whole = run(tmp_path, "whole", n, optimizer="adamw_8bit", **changes)
    job = make_job(tmp_path, "stopped", ranks_per_node=n, max_steps=6, optimizer="adamw_8bit", **changes)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, n, job.to_json(), 3, group=n > 1)
    finish(job, n)
    assert (rows(job), weights(job)) == (rows(whole), weights(whole))


@pytest.fixture(scope="module")
def compiled():
    """DeepSpeed's CPU Adam, compiled once and before ranks wait for each other."""
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        pytest.skip("it is compiled at its first use")
    load = "from vlmrun.train import cpu_adam; cpu_adam.compiled()"
    subprocess.run([sys.executable, "-c", load], env=os.environ | {"DS_ACCELERATOR": "cpu"}, check=True)


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("zero", [2, 3])
def test_deepspeeds_cpu_adam_trains_as_torch_does_under_offload(tmp_path, zero):
    changes = {"zero": zero, "offload": "cpu", "micro_batch": 1}
    reference = run(tmp_path, "reference", 2, **changes)
    compare(reference, run(tmp_path, "other", 2, optimizer="cpu_adam", **changes), loss_atol=1e-4, norm_rtol=1e-3)
