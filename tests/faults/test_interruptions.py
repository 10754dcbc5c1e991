"""Killed, stopped, blocked, out of room: the same command resumes and the result is the same to the last bit."""

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests import nest
from tests.conftest import TINY, run_vlmrun
from tests.faults.conftest import arguments
from vlmrun import artifact

MORE = ["stage.pretrain.epochs=60", "stage.pretrain.engine=deepspeed", "stage.pretrain.save_steps=3"]


def start(folder, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "vlmrun.cli", *arguments(folder), *MORE, *more],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stage_folder(folder):
    (found,) = (folder / "outputs" / "stages").glob("pretrain-*")
    return found


def wait_for_step(folder, step, process):
    """Waits until this process, not one before it, has logged a step at or beyond `step`."""
    began = time.time()
    for _ in range(6000):
        for rows in (folder / "outputs" / "stages").glob("pretrain-*/metrics.jsonl"):
            if rows.stat().st_mtime > began and len(rows.read_text().splitlines()) >= step:
                return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in 120 s")


def workers_of(process):
    ours = ["pgrep", "-P", str(process.pid), "-f", "vlmrun"]  # not its nest
    listed = subprocess.run(ours, capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def result(folder):
    stage = stage_folder(folder)
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["loss"], row["grad_norm"]) for row in rows]
    weights = {name: file.sha256 for name, file in artifact.read(stage).files.items() if name.endswith(".safetensors")}
    return losses, weights


@pytest.fixture
def undisturbed(own_data, tmp_path_factory, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(own_data))
    calm = tmp_path_factory.mktemp("calm")
    done = run_vlmrun(*arguments(tmp_path), *MORE, cwd=calm)
    assert done.returncode == 0, done.stderr
    return result(calm)


@pytest.mark.slow
def test_a_worker_killed_at_random_steps_ends_bit_identically(undisturbed, tmp_path):
    for step in sorted(random.Random(7).sample(range(1, 100), 3)):
        process = start(tmp_path)
        wait_for_step(tmp_path, step, process)
        (worker,) = workers_of(process)
        os.kill(worker, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 5, said
        assert "was killed by SIGKILL" in said
        assert "the same command resumes" in said
    done = run_vlmrun(*arguments(tmp_path), *MORE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stderr
    losses, weights = result(tmp_path)
    assert [row for row in zip(losses, undisturbed[0], strict=True) if row[0] != row[1]] == []
    assert weights == undisturbed[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_step(tmp_path, 4, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "checkpoint saved" in said
    assert "Traceback" not in said
    done = run_vlmrun(*arguments(tmp_path), *MORE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path) == undisturbed


LAUNCHERS = {
    "inline": [],
    "torchrun": ["hardware.launcher=torchrun", "hardware.ranks_per_node=2"],
    "deepspeed": ["hardware.launcher=deepspeed", "hardware.ranks_per_node=2"],
}
endless = pytest.mark.parametrize("launcher", LAUNCHERS)


def start_endless(own_data, folder, launcher):
    """A training that only a signal ends, at its second step or later."""
    (folder / "own.json").write_text(json.dumps(own_data))
    process = start(folder, *LAUNCHERS[launcher], "stage.pretrain.epochs=5000", "stage.pretrain.save_steps=1000")
    wait_for_step(folder, 2, process)
    return process


def assert_nobody_works_on(folder):
    """No launcher and no rank: they all name their job's file."""
    for _ in range(200):
        listed = subprocess.run(["pgrep", "-af", str(folder)], capture_output=True, text=True, check=False).stdout
        if not listed:
            return
        time.sleep(0.1)
    raise AssertionError(f"outlived the run by 20 s:\n{listed}")


@pytest.mark.slow
@pytest.mark.ranks
@endless
def test_ctrl_c_and_sigterm_save_and_leave_nobody_behind(own_data, tmp_path, launcher):
    process = start_endless(own_data, tmp_path, launcher)
    # SIGTERM is what SLURM sends before it takes the machine away.
    process.send_signal(signal.SIGTERM if launcher == "torchrun" else signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "checkpoint saved" in said
    assert "Traceback" not in said
    assert list(stage_folder(tmp_path).glob("checkpoints/step-*"))
    assert_nobody_works_on(tmp_path / "outputs")


@pytest.mark.slow
@pytest.mark.ranks
@endless
def test_killing_the_parent_leaves_nobody_behind(own_data, tmp_path, launcher):
    process = start_endless(own_data, tmp_path, launcher)
    process.kill()
    process.communicate()
    assert_nobody_works_on(tmp_path / "outputs")
    assert list(stage_folder(tmp_path).glob("checkpoints/step-*"))


@pytest.mark.slow
def test_ctrl_c_outside_training_is_told_without_a_traceback(tmp_path, monkeypatch):
    command = [*TINY, "only=[pretrain,eval_pretrain]", "stage.eval_pretrain.max_new_tokens=900"]
    monkeypatch.setenv(nest.EXEC, "1")
    # While its modules load, and while it answers.
    for sign, wait in (("job.json", 0.7), ("*answers*", 0.0)):
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmrun.cli", *command],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(3000):
            if list(tmp_path.glob(f"outputs/stages/eval_pretrain-*/{sign}")):
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert "stopped; the same command resumes there" in said
        assert "checkpoint" not in said
    done = run_vlmrun(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pretrain: reused" in done.stderr


def test_a_second_process_on_the_same_stage_is_refused_when_asked_not_to_wait(own_data, pretrain, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(own_data))
    checked = run_vlmrun("check", *arguments(tmp_path), cwd=tmp_path)
    key = checked.stdout.split()[3]
    folder = tmp_path / "outputs" / "stages" / f"pretrain-{key}"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = pretrain(own_data, "if_busy=fail")
    assert done.returncode == 5, done.stderr
    assert "is being worked on by" in done.stderr
    assert "if_busy=wait" in done.stderr


def test_a_full_disk_is_told_and_loses_nothing(own_data, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(own_data))
    command = [sys.executable, "-m", "vlmrun.cli", *arguments(tmp_path), "model/llm=micro"]
    limited = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        # No file may grow beyond this: writes fail as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )  # fmt: skip
    assert limited.returncode in (3, 4), limited.stderr
    assert "Traceback" not in limited.stderr
    assert artifact.read(stage_folder(tmp_path)) is None
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_read_only_output_folder_is_told(own_data, pretrain, tmp_path):
    done = pretrain(own_data, "output=/proc/nothing")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert "/proc/nothing" in done.stderr
