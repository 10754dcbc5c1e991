"""argv and environment are pure functions of a job; a worker's death is told as what it was."""

import base64
import json
import os
import signal
import sys
import threading
import time

import pytest

from vlmrun.config.job import StageJob
from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError
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


def world(command):
    return json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))


def test_deepspeed_is_started_without_its_runner_which_would_leave_orphans(job):
    made = job("lora", "hardware.launcher=deepspeed", "hardware.ranks_per_node=2")
    assert launch.command(made, 1234)[1:] == [
        "-m", "deepspeed.launcher.launch", "--world_info", "eyJsb2NhbGhvc3QiOiBbMCwgMV19", "--node_rank", "0",
        "--master_addr", "127.0.0.1", "--master_port", "1234",
        "--log_level", "critical", "--no_local_rank", "--module", "vlmrun.worker", f"{made.folder}/job.json",
    ]  # fmt: skip
    assert world(launch.command(made, 1234)) == {"localhost": [0, 1]}


@pytest.mark.parametrize(("gpu", "devices"), [("cpu", [0, 1]), ("h100_80gb", ["5", "GPU-3f"])])
def test_deepspeed_keeps_to_the_gpus_it_was_given(job, gpu, devices):
    made = job("lora", "hardware.launcher=deepspeed", "hardware.ranks_per_node=2")
    hardware = made.hardware.model_copy(update={"gpu": gpu})
    made = made.model_copy(update={"hardware": hardware})
    assert world(launch.command(made, 1234, "5,GPU-3f,7")) == {"localhost": devices}


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
        ("raise SystemExit(2)", ConfigError, "exit code 2\n  at:  .*logs\n  fix: the reason is printed above"),
        ("raise SystemExit(3)", DataError, "the reason is printed above"),
        ("raise SystemExit(4)", CheckpointError, "the reason is printed above"),
        ("raise SystemExit(5)", LaunchError, "the reason is printed above"),
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
    monkeypatch.setattr(launch, "command", lambda job, port, visible: [sys.executable, "-c", code])
    with (tmp_path / "lock").open("w") as lock, pytest.raises(error, match=text):
        launch.run(made, lock.fileno())


FINISH = "pathlib.Path('FOLDER/artifact.json').write_text(ARTIFACT)"
ARTIFACT = {
    "name": "merge", "kind": "merge", "key": "k", "run": "r", "created": "c",
    "parents": [], "summary": {}, "environment": {}, "files": {},
}  # fmt: skip


def left(kind, what):
    words = json.dumps({"type": kind, "problems": [{"what": what}]})
    return f"pathlib.Path('FOLDER/failure.json').write_text({words!r})"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("pass", "stopped; the same command goes on from there"),
        (left("LaunchError", "stopped at step 3; checkpoint saved"), "stopped at step 3; checkpoint saved"),
        (left("LaunchError", "lost another rank"), "stopped; the same command goes on from there"),
        (left("VlmrunError", "a bug"), "stopped; the same command goes on from there"),
        (left("DataError", "disk full"), "error: disk full"),
        (FINISH, "stage 'merge' had finished when it was stopped; the same command goes on from there"),
    ],
)
def test_what_is_said_to_a_person_who_stops_a_stage(job, monkeypatch, tmp_path, last, said):
    made = job("merge")
    last = last.replace("FOLDER", made.folder).replace("ARTIFACT", repr(json.dumps(ARTIFACT)))
    ready = tmp_path / "ready"
    code = f"""
import json, pathlib, signal, time
def end(*_):
    {last}
    raise SystemExit(0 if "artifact" in {last!r} else 5)
signal.signal(signal.SIGTERM, end)
pathlib.Path({str(ready)!r}).touch()
time.sleep(20)
"""
    monkeypatch.setattr(launch, "command", lambda job, port, visible: [sys.executable, "-c", code])

    def press_ctrl_c():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=press_ctrl_c)
    person.start()
    with (tmp_path / "lock").open("w") as lock, pytest.raises(KeyboardInterrupt) as stopped:
        launch.run(made, lock.fileno())
    person.join()
    assert str(stopped.value) == said
