"""argv and environment are pure functions of a job; a worker's death is told as what it was."""

import sys

import pytest

from vlmrun.config.job import StageJob
from vlmrun.errors import DataError, LaunchError
from vlmrun.run import graph, identity, launch, pipeline


@pytest.fixture
def job(smoke, tmp_path):
    def make(name: str, *overrides: str) -> StageJob:
        run = smoke(f"output={tmp_path}", *overrides)
        planned, _ = graph.plan(run)
        whole = pipeline.Run(run, planned, identity.keys(planned, run), tmp_path / "runs" / "smoke")
        item = next(item for item in planned if item.name == name)
        made = pipeline.job_of(whole, item)
        made.path.mkdir(parents=True)
        return made

    return make


def test_inline_is_one_python_process(job):
    made = job("lora")
    assert launch.command(made, 1234) == [sys.executable, "-m", "vlmrun.worker", f"{made.folder}/job.json"]


def test_torchrun_starts_the_ranks_of_one_node_without_a_fixed_port(job):
    made = job("lora", "hardware.launcher=torchrun", "hardware.ranks_per_node=2")
    assert launch.command(made, 1234)[1:] == [
        "-m", "vlmrun.torchrun", "--nnodes", "1", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", made.key,
        "--max-restarts", "0", "-m", "vlmrun.worker", f"{made.folder}/job.json",
    ]  # fmt: skip


def test_deepspeed_is_given_its_port(job):
    made = job("lora", "hardware.launcher=deepspeed", "hardware.ranks_per_node=2")
    assert launch.command(made, 1234)[1:] == [
        "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "1234",
        "--log_level", "warning", "--no_local_rank", "--module", "vlmrun.worker", f"{made.folder}/job.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["shapes", "merge", "average", "eval_merge"])
def test_only_training_has_ranks(job, name):
    made = job(name, "hardware.launcher=torchrun", "hardware.ranks_per_node=2")
    assert launch.command(made, 1234)[1:3] == ["-m", "vlmrun.worker"]


def test_the_environment_is_offline_and_quiet_unless_asked(job):
    env = launch.environment(job("lora", "hardware.threads=3"), {"HOME": "/h", "HF_HUB_OFFLINE": "0"})
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["HF_HUB_OFFLINE"] == "0"  # asked for
    assert env["WANDB_MODE"] == "offline"
    assert env["DS_ACCELERATOR"] == "cpu"
    assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert launch.environment(job("lora2"), {})["HF_HUB_OFFLINE"] == "1"


def test_a_job_survives_its_json(job):
    made = job("eval_merge")
    (made.path / "job.json").write_text(made.to_json())
    assert StageJob.read(made.path / "job.json") == made


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", LaunchError, "was killed by SIGKILL"),
        ("raise SystemExit(9)", LaunchError, "ended with exit code 9"),
        (
            "import json, pathlib; pathlib.Path('FOLDER/failure.json').write_text(json.dumps("
            "{'type': 'DataError', 'problems': [{'what': 'w', 'where': 'x', 'fix': 'f'}]})); raise SystemExit(3)",
            DataError,
            "error: w\n  at:  x\n  fix: f",
        ),
    ],
)
def test_how_a_worker_died_is_told(job, monkeypatch, tmp_path, code, error, text):
    made = job("merge")
    code = code.replace("FOLDER", made.folder)
    monkeypatch.setattr(launch, "command", lambda job, port: [sys.executable, "-c", code])
    with (tmp_path / "lock").open("w") as lock, pytest.raises(error, match=text):
        launch.run(made, lock.fileno())
