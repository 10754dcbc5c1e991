"""Two ranks through the real launchers, and what they train against one rank."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import nest
from tests.conftest import ROOT, TINY
from vlmrun import artifact

ONLY = ["only=[pretrain]", "stage.pretrain.micro_batch=2"]
TWO = ["hardware.ranks_per_node=2"]


def losses(folder):
    (stage,) = (folder / "outputs" / "stages").glob("pretrain-*")
    assert artifact.read(stage) is not None
    return [json.loads(line)["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()]


# What srun does, as far as ours is concerned: runs every task, ends all when one fails, says which task is which.
SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
open(os.environ["SAID"], "w").write(" ".join(words))
n_tasks, n_nodes = int(words[words.index("--ntasks") + 1]), int(words[words.index("--nodes") + 1])
command = words[next(place for place, word in enumerate(words) if "python" in word) :]
tasks = [
    subprocess.Popen(command, env=os.environ | {{
        "SLURM_PROCID": str(task), "SLURM_NTASKS": str(n_tasks), "SLURM_LOCALID": str(task % (n_tasks // n_nodes)),
    }})
    for task in range(n_tasks)
]
sys.exit(max(task.wait() for task in tasks))
"""


def on_two_nodes(folder, *overrides):
    """The command on two "nodes" of this machine, through the script; what each said, by its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    nodes = [
        subprocess.Popen(
            [ROOT / "launchers" / "multinode.sh", str(rank), f"127.0.0.1:{port}", *overrides, "hardware.nodes=2"],
            cwd=folder, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (1, 0)
    ]  # fmt: skip
    said = [node.communicate(timeout=280) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    return "".join(said[1]), "".join(said[0])


def on_srun(vlmrun, folder, *overrides):
    """The command inside a SLURM job of two nodes, with an srun that runs its tasks here."""
    (folder / "srun").write_text(SRUN.format(python=sys.executable))
    (folder / "srun").chmod(0o755)
    done = vlmrun(
        *overrides, "hardware.nodes=2", "hardware.launcher=srun",
        cwd=folder, PATH=f"{folder}:{os.environ['PATH']}", SLURM_JOB_ID="7", SAID=str(folder / "said"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--nodes 2 --ntasks 2 --ntasks-per-node 1" in (folder / "said").read_text()


@pytest.mark.slow
@pytest.mark.ranks
def test_every_launcher_trains_as_one_process_does(vlmrun, tmp_path):
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
        assert done.stdout.startswith("smoke: ")  # the table, and nothing of the ranks before it
        assert "Traceback" not in done.stderr
        curves[name] = losses(folder)
    for name in ("nodes", "srun"):
        (tmp_path / name).mkdir()
    first, second = on_two_nodes(tmp_path / "nodes", *TINY, *ONLY, "hardware.launcher=torchrun")
    assert "node 1: starts its ranks of pretrain" in second
    assert "report: " in first
    assert "report: " not in second
    assert list((tmp_path / "nodes" / "outputs").glob(".nodes-*")) == []
    on_srun(vlmrun, tmp_path / "srun", *TINY, *ONLY)
    curves |= {name: losses(tmp_path / name) for name in ("nodes", "srun")}
    assert curves["torchrun"] == pytest.approx(curves["inline"], abs=1e-5)
    for name in ("deepspeed", "nodes", "srun"):
        assert curves[name] == pytest.approx(curves["torchrun"], abs=1e-6), name


@pytest.mark.slow
@pytest.mark.ranks
def test_an_evaluation_is_shared_by_the_ranks_of_all_nodes(vlmrun, tiny_run, tmp_path):
    asked = [*TINY, "only=[eval_instruct]", "stage.eval_instruct.max_samples=null"]
    asked += [f"stage.eval_instruct.init_from={tiny_run.stage('instruct')}"]

    def answers(name):
        (stage,) = (tmp_path / name / "outputs" / "stages").glob("eval_instruct-*")
        assert artifact.read(stage) is not None
        return {file: (stage / file).read_bytes() for file in ("answers.jsonl", "answers_shuffled.jsonl")}

    for name in ("one", "nodes", "srun"):
        (tmp_path / name).mkdir()
    done = vlmrun(*asked, cwd=tmp_path / "one")
    assert done.returncode == 0, done.stderr
    first, second = on_two_nodes(tmp_path / "nodes", *asked, "hardware.launcher=torchrun", *TWO)
    assert "node 1: starts its ranks of eval_instruct" in second
    assert "exact match: " in first
    assert "exact match: " not in second
    logs = sorted((tmp_path / "nodes" / "outputs" / "stages").glob("eval_instruct-*/logs/rank-*.log"))
    assert [log.name for log in logs] == [f"rank-{rank}.log" for rank in range(4)]
    on_srun(vlmrun, tmp_path / "srun", *asked)
    assert answers("nodes") == answers("one") == answers("srun")


@pytest.mark.slow
@pytest.mark.ranks
def test_an_error_of_a_rank_keeps_its_text_and_exit_code_through_torchrun(vlmrun, tmp_path):
    records = []
    for n in range(8):  # what a look at files does not find: images that cannot be decoded
        (tmp_path / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
        records.append({"id": str(n), "image": f"{n}.png", "conversations": turns})
    (tmp_path / "own.json").write_text(json.dumps(records))
    done = vlmrun(
        "name=bad", "model=micro", "data=[llava]", "stage=[pretrain]", "stage.pretrain.data=[llava]",
        f"data.llava.annotations={tmp_path}/own.json", f"data.llava.images={tmp_path}",
        "stage.pretrain.global_batch=4", "stage.pretrain.micro_batch=2", *TWO, "hardware.launcher=torchrun",
        "stage.pretrain.optim.warmup_ratio=0",
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
    assert "the same command resumes" in said
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


def _listening(folder):
    """Addresses that processes working on `folder` accept connections at."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("VLMRUN_OUTPUT") == str(folder):
                connections = process.net_connections("inet")
                found |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ranks_of_one_node_are_reachable_from_this_machine_only(tmp_path, launcher):
    command = [sys.executable, "-m", "vlmrun", *TINY, *ONLY, *TWO, f"hardware.launcher={launcher}"]
    # Executed, since what a process sets itself is not in what the system shows of its environment.
    environment = os.environ | {"VLMRUN_OUTPUT": str(tmp_path), nest.EXEC: "1"}
    found = set()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            found |= _listening(tmp_path)
            time.sleep(0.1)
        assert run.returncode == 0, run.stderr.read()
    assert found == {"127.0.0.1"}  # gloo's own: that it was seen shows that the look works
