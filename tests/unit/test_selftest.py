"""The self-test: its table composes, what is missing is skipped, and what is wrong is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlmrun.checks import rules
from vlmrun.cli import selftest as verb
from vlmrun.cli import train
from vlmrun.errors import ConfigError, LaunchError
from vlmrun.names import METRICS
from vlmrun.selftest import probe, running
from vlmrun.selftest.checks import CHECKS, COMMON, REFERENCE, Check
from vlmrun.selftest.probe import Machine

NONE = Machine("2.13.0", None, 0, "", (0, 0), 0, "no GPU")
H100 = Machine("2.11.0", "13.0", 1, "NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_is_a_run_without_problems(check):
    config = train.compose([*COMMON, "hardware.gpu=h100_80g", *check.overrides], [])
    assert rules.check(config, here=False) == []


def test_names_are_one_each_and_the_reference_is_among_them():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert REFERENCE in names


@pytest.mark.parametrize(
    ("capability", "gib", "name"),
    [((9, 0), 80, "h100_80g"), ((8, 9), 24, "rtx3090"), ((8, 0), 40, "a100_40g"), ((7, 0), 32, "v100_32g"),
     ((12, 0), 180, "h200_141g"), ((7, 5), 16, "v100_16g"), ((6, 1), 11, "v100_16g")],
)  # fmt: skip
def test_a_gpu_is_taken_for_the_nearest_that_is_known(capability, gib, name):
    assert Machine("", None, 1, "", capability, gib * 2**30).table_name == name


def test_what_is_missing_is_said():
    by_name = {check.name: check for check in CHECKS}
    absent = Check("x", (), None, packages=("no_such_package",))
    assert running.missing(absent, H100) == "no_such_package not installed"
    assert running.missing(by_name["TensorFloat-32"], NONE) == "needs a GPU, 0 here"
    assert running.missing(by_name["2 ranks, FSDP"], H100) == "needs 2 GPUs, 1 here"
    assert running.missing(by_name["2 ranks, FSDP"], NONE) == ""  # on its CPU
    old = Machine("", None, 1, "", (7, 0), 2**34)
    assert running.missing(by_name["TensorFloat-32"], old) == "needs compute capability 8.0"


@pytest.mark.parametrize(
    ("script", "cuda", "said"),
    [(None, "13.0", "nvidia-smi is not here"), ("exit 9", "13.0", "finds no GPU"),
     ("echo NVIDIA L4, 470.82", "13.0", "built for CUDA 13.0 and cannot use NVIDIA L4 with driver 470.82"),
     ("echo NVIDIA L4, 580.1", None, "torch is a build for CPUs")],
)  # fmt: skip
def test_why_no_gpu_can_be_used(tmp_path, monkeypatch, script, cuda, said):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    assert said in probe._why_none(cuda)


@no_gpu
def test_without_a_gpu_it_says_so_and_exits_cleanly(capsys):
    with pytest.raises(LaunchError, match="at:  this machine") as caught:
        verb.main(["--gpu"])
    assert caught.value.exit_code == 5
    with pytest.raises(ConfigError, match="no check fits 'ZeRO-9'"):
        verb.main(["--only", "ZeRO-9"])
    assert verb.main(["--list", "--only", "attention*"]) == 0
    assert "attention: flash-attn" in capsys.readouterr().out


def _fake(tmp_path, monkeypatch, *, files=1, broken=()):
    """Trainings that write metrics and nothing else, as many files each; those of checks in `broken` fail."""

    def run(command, *, cwd, **_):
        failed = any(name in command for name in broken)
        for number in range(files):
            place = Path(cwd) / f"outputs/{number}"
            place.mkdir(parents=True)
            (place / METRICS).write_text('{"loss": 6.0}\n{"loss": 5.0}\n')
        return subprocess.CompletedProcess(command, int(failed), "", "error: it broke")

    monkeypatch.setattr(running.subprocess, "run", run)


@pytest.mark.parametrize("files", [0, 2])
def test_a_run_without_its_one_file_of_metrics_has_failed(tmp_path, monkeypatch, files):
    _fake(tmp_path, monkeypatch, files=files)
    (outcome,) = running.run(NONE, tmp_path, [])
    assert (outcome.state, outcome.why) == ("failed", f"{files} files metrics.jsonl, one was expected")


def test_without_a_reference_nothing_else_is_run(tmp_path, monkeypatch):
    others = [Check("compared", ("a",), 1e-3, gpus=0), Check("falling", ("b",), None, gpus=0)]
    _fake(tmp_path, monkeypatch)
    assert [one.state for one in running.run(NONE, tmp_path, others)] == ["passed"] * 3
    _fake(tmp_path, monkeypatch, broken=["hardware.gpu=cpu"])
    found = list(running.run(NONE, tmp_path, others))
    assert [(one.state, one.why) for one in found[1:]] == [("skipped", "no reference")] * 2
    assert (found[0].state, found[0].why) == ("failed", "it broke")


@pytest.mark.slow
def test_kept_features_are_read(tmp_path):
    """In the second epoch, with the tower out of use."""
    (check,) = (check for check in CHECKS if "tower_cache" in "".join(check.overrides))
    config = train.compose([*COMMON, "hardware.gpu=cpu", *check.overrides], [])
    stage = config.stage["pretrain"]
    assert stage.max_steps * stage.global_batch >= 2 * config.data["shapes_captions"].prepare.n_train
    found = {one.check.name: one for one in running.run(NONE, tmp_path, [check])}
    assert found[check.name].state == "passed", found[check.name].why


@pytest.mark.slow
def test_right_and_wrong_numbers_are_told_apart(tmp_path):
    """One that computes the same, one that does not, one that cannot start."""
    same = next(check for check in CHECKS if check.name == "loss: full logits")
    wrong = Check("another rate", (*same.overrides, "stage.pretrain.optim.lr=2e-2"), 1e-3, gpus=0)
    broken = Check("no such attention", ("hardware.attention=none",), 1e-3, gpus=0)
    outcomes = list(running.run(NONE, tmp_path, [same, wrong, broken]))
    assert [one.state for one in outcomes] == ["passed", "passed", "failed", "failed"]
    assert outcomes[0].check.name == REFERENCE
    assert outcomes[0].losses[-1] < outcomes[0].losses[0]
    assert outcomes[1].off is not None
    assert outcomes[1].off <= same.tolerance
    assert "losses are off by" in outcomes[2].why
    assert "attention" in outcomes[3].why


@pytest.mark.slow
@no_gpu
def test_the_command(tmp_path):
    command = [sys.executable, "-m", "vlmrun", "selftest", "--only", "Tensor*", "--json", str(tmp_path / "found.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"
    found = json.loads(Path(tmp_path / "found.json").read_text("utf-8"))
    assert [one["state"] for one in found["checks"]] == ["passed", "skipped"]
