"""Under torchrun, through the real command: a rank that dies or hangs is named, and the job starts again as asked."""

import json
import os
import signal
import time

import pytest

from tests.faults.test_interruptions import LAUNCHERS, assert_nobody_works_on, stage_folder, start, wait_for_step
from tests.integration import ranks as forked
from tests.integration.jobs import execute, rows, weights
from vlmrun import heartbeat
from vlmrun.config.job import StageJob

# The time-outs are for a machine with much other work: fourteen busy processes on two cores made it take 230 s, not 30.
pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = [
    *LAUNCHERS["torchrun"], "hardware.hang_seconds=5", "hardware.timeout_seconds=60", "hardware.max_restarts=1",
    "stage.pretrain.epochs=60", "stage.pretrain.save_steps=1000",
]  # fmt: skip


def wait_until(condition, process):
    for _ in range(9000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("did not happen within 180 s")


def test_a_dead_rank_and_a_hanging_one(own_data, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(own_data))
    process = start(tmp_path, *SETTINGS)
    wait_for_step(tmp_path, 3, process)
    folder = stage_folder(tmp_path)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: list(folder.glob("checkpoints/step-*")), process)
    (saved,) = folder.glob("checkpoints/step-*")
    done = int(saved.name.removeprefix("step-"))

    os.kill(heartbeat.read(folder / "logs")[1].pid, signal.SIGKILL)
    wait_until(lambda: len(heartbeat.read(folder / "logs")) < 2, process)
    wait_for_step(tmp_path, done + 2, process)
    began = time.monotonic()
    os.kill(heartbeat.read(folder / "logs")[0].pid, signal.SIGSTOP)
    _, said = process.communicate(timeout=180)
    assert time.monotonic() - began < 60
    assert process.returncode == 5, said
    assert "checkpoint saved, as SIGUSR1 asked for" in said
    assert "rank 1 died in step" in said
    assert "rank-1.log ends with:" in said
    assert "restart 1 of 1" in said
    assert f"goes on from step {done} of 120" in said
    assert "rank 0 hangs: no progress for" in said
    assert "after 1 restart" in said
    assert "Traceback" not in said
    assert (folder / "logs" / "stack-1.txt").read_text().count("File ") > 3, "where the waiting rank stood"
    assert_nobody_works_on(tmp_path / "outputs")

    process = start(tmp_path, *SETTINGS)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    job = StageJob.read(folder / "job.json")
    calm = job.model_copy(update={"folder": str(tmp_path / "calm")})
    calm.path.mkdir()
    forked.run(execute, 2, calm.to_json())
    assert rows(job) == rows(calm)
    assert weights(job) == weights(calm)
