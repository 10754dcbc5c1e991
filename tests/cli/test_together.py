"""Two runs at once, and a run without a network."""

import json
import subprocess
import sys

import pytest

from tests.conftest import TINY
from vlmrun import artifact

QUICK = ["only=[pretrain]", "stage.pretrain.max_steps=2", "stage.pretrain.engine=plain"]

NO_NETWORK = """\
import os, socket

allowed = ("127.0.0.1", "::1", "localhost")
connect = socket.socket.connect


def guarded(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in allowed:
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(repr(address) + "\\n")
        raise OSError("no network in this test")
    return connect(self, address)


def resolve(host, *rest, **more):
    if host not in (*allowed, None, "", socket.gethostname()):
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(repr(host) + "\\n")
        raise socket.gaierror("no network in this test")
    return getaddrinfo(host, *rest, **more)


getaddrinfo = socket.getaddrinfo
socket.getaddrinfo = resolve
socket.socket.connect = guarded
"""


@pytest.mark.slow
def test_two_runs_that_share_a_stage_train_it_once(tmp_path):
    command = [sys.executable, "-m", "vlmrun.cli", *TINY, *QUICK]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("pretrain: done in" in text for text in said) == 1, said
    assert sum("waiting for process" in text for text in said) >= 1, said
    assert len(list((tmp_path / "outputs" / "stages").glob("pretrain-*"))) == 1


@pytest.mark.slow
def test_a_run_with_every_tracker_asks_nobody_outside(vlmrun, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    seen = tmp_path / "seen"
    done = vlmrun(*TINY, *QUICK, "tracking=[tensorboard,wandb]", PYTHONPATH=str(tmp_path / "site"), SEEN=str(seen))
    assert done.returncode == 0, done.stderr
    assert not seen.exists(), seen.read_text()
    (stage,) = (tmp_path / "outputs" / "stages").glob("pretrain-*")
    assert list((stage / "logs" / "tensorboard").glob("events*"))
    assert list((stage / "logs" / "wandb").rglob("*.wandb"))
    assert artifact.read(stage).summary["steps"] == 2


def test_the_guard_of_that_test_guards(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path), "SEEN": str(tmp_path / "seen")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "192.0.2.1" in (tmp_path / "seen").read_text()


def test_metrics_are_kept_with_any_tracker(tiny_run):
    rows = (tiny_run.stage("pretrain") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
