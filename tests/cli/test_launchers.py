"""Two ranks through the real launchers, and what they train against one rank."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY
from vlmrun import artifact

ONLY = ["only=[pretrain]", "stage.pretrain.micro_batch=2"]
TWO = ["hardware.ranks_per_node=2"]


def losses(folder):
    (stage,) = (folder / "outputs" / "stages").glob("pretrain-*")
    assert artifact.read(stage) is not None
    return [json.loads(line)["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.ranks
def test_torchrun_and_deepspeed_train_as_one_process_does(vlmrun, tmp_path):
    curves = {}
    for name, extra in {
        "inline": [],
        "torchrun": [*TWO, "hardware.launcher=torchrun"],
        "deepspeed": [*TWO, "hardware.launcher=deepspeed"],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        done = vlmrun(*TINY, *ONLY, *extra, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        curves[name] = losses(folder)
    assert curves["torchrun"] == pytest.approx(curves["inline"], abs=1e-5)
    assert curves["deepspeed"] == pytest.approx(curves["torchrun"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.ranks
def test_an_error_of_a_rank_keeps_its_text_and_exit_code_through_torchrun(vlmrun, tmp_path):
    (tmp_path / "own.json").write_text('[{"id": "x", "conversations": []}]')
    done = vlmrun(
        "name=bad", "model=micro", "data=[llava]", "stage=[pretrain]", "stage.pretrain.data=[llava]",
        f"data.llava.annotations={tmp_path}/own.json", f"data.llava.images={tmp_path}",
        "stage.pretrain.global_batch=4", "stage.pretrain.micro_batch=2", *TWO, "hardware.launcher=torchrun",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "own.json" in done.stderr
    assert "  fix: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.ranks
def test_a_killed_rank_ends_the_run_and_leaves_no_orphan(tmp_path):
    command = [*TINY, *ONLY, *TWO, "hardware.launcher=torchrun", "stage.pretrain.max_steps=5000",
               "stage.pretrain.epochs=2000"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmrun.cli", *command],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(900):
        if list((tmp_path / "outputs" / "stages").glob("pretrain-*/checkpoints/step-*")):
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    ranks = ranks_of(tmp_path)
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert "the same command goes on" in said
    for _ in range(100):
        if not ranks_of(tmp_path):
            return
        time.sleep(0.1)
    raise AssertionError("a rank outlived its run by 10 s")


def ranks_of(folder):
    """Workers (not the launcher) of the jobs below a folder."""
    listed = subprocess.run(["pgrep", "-af", "vlmrun.worker"], capture_output=True, text=True, check=False).stdout
    mine = [line for line in listed.splitlines() if str(folder) in line and "vlmrun.torchrun" not in line]
    return sorted(int(line.split()[0]) for line in mine)
