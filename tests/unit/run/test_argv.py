"""argv and environment are pure functions of a job."""

import base64
import json
import sys

import pytest

from vlmrun.config.job import StageJob
from vlmrun.run import argv


def test_inline_is_one_python_process(job):
    made = job("lora")
    assert argv.command(made, 1234) == [sys.executable, "-m", "vlmrun.worker", f"{made.folder}/job.json"]


def test_torchrun_starts_the_ranks_of_one_node_without_a_fixed_port(job):
    made = job("lora", "hardware.launcher=torchrun", "hardware.ranks_per_node=2")
    assert argv.command(made, 1234)[1:] == [
        "-m", "vlmrun.torchrun", "--nnodes", "1", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", f"{made.key}-0",
        "--max-restarts", "0", "-m", "vlmrun.worker", f"{made.folder}/job.json",
    ]  # fmt: skip


def world(command):
    return json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))


def test_deepspeed_is_started_without_its_runner_which_would_leave_orphans(job):
    made = job("lora", "hardware.launcher=deepspeed", "hardware.ranks_per_node=2")
    assert argv.command(made, 1234)[1:] == [
        "-m", "deepspeed.launcher.launch", "--world_info", "eyJsb2NhbGhvc3QiOiBbMCwgMV19", "--node_rank", "0",
        "--master_addr", "127.0.0.1", "--master_port", "1234",
        "--log_level", "critical", "--no_local_rank", "--module", "vlmrun.worker", f"{made.folder}/job.json",
    ]  # fmt: skip
    assert world(argv.command(made, 1234)) == {"localhost": [0, 1]}


@pytest.mark.parametrize(("gpu", "devices"), [("cpu", [0, 1]), ("h100_80gb", ["5", "GPU-3f"])])
def test_deepspeed_keeps_to_the_gpus_it_was_given(job, gpu, devices):
    made = job("lora", "hardware.launcher=deepspeed", "hardware.ranks_per_node=2")
    hardware = made.hardware.model_copy(update={"gpu": gpu})
    made = made.model_copy(update={"hardware": hardware})
    assert world(argv.command(made, 1234, "5,GPU-3f,7")) == {"localhost": devices}


@pytest.mark.parametrize("name", ["shapes", "merge", "average"])
def test_only_training_and_evaluation_have_ranks(job, name):
    made = job(name, "hardware.launcher=torchrun", "hardware.ranks_per_node=2")
    assert argv.command(made, 1234)[1:3] == ["-m", "vlmrun.worker"]
    evaluated = job("eval_merge", "hardware.launcher=torchrun", "hardware.ranks_per_node=2")
    assert argv.command(evaluated, 1234)[1:3] == ["-m", "vlmrun.torchrun"]


def test_the_environment_is_offline_and_quiet_unless_asked(job):
    env = argv.environment(job("lora", "hardware.threads=3"), {"HOME": "/h", "HF_HUB_OFFLINE": "0"})
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["HF_HUB_OFFLINE"] == "0"  # asked for
    assert env["WANDB_MODE"] == "offline"
    assert env["DS_ACCELERATOR"] == "cpu"
    assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert argv.environment(job("lora2"), {})["HF_HUB_OFFLINE"] == "1"


def test_a_job_survives_its_json(job):
    made = job("eval_merge")
    (made.path / "job.json").write_text(made.to_json())
    assert StageJob.read(made.path / "job.json") == made
