"""What `tests/nest.py` forks is, to who started it and to who looks at it, what would have been executed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import nest

COMMAND = [sys.executable, "-m", "vlmrun.cli"]


@pytest.fixture(params=["forked", "executed"])
def way(request, monkeypatch):
    """Both ways, with the same expectations."""
    if request.param == "executed":
        monkeypatch.setenv(nest.EXEC, "1")
    return request.param


def test_output_exit_code_and_folder(way, tmp_path):
    right = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=False)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.startswith("vlmrun ")
    wrong = subprocess.run([*COMMAND, "chekc"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'check'" in wrong.stderr
    both = subprocess.run(
        [*COMMAND, "ls", "nothing"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"VLMRUN_OUTPUT": "elsewhere"}, check=False,
    )  # fmt: skip
    assert "elsewhere" in both.stdout
    assert both.returncode != 0


def test_a_child_is_ours_and_shows_its_command_line(way, tmp_path):
    with subprocess.Popen([*COMMAND, "check", "+recipe=smoke", "stage.lora.seed=5"], cwd=tmp_path,
                          stdout=subprocess.PIPE, start_new_session=True) as process:  # fmt: skip
        for _ in range(500):  # exec is not done at once either
            listed = subprocess.run(
                ["pgrep", "-fP", str(os.getpid()), "stage.lora.seed=5"], capture_output=True, text=True
            )
            if listed.stdout:
                break
            time.sleep(0.01)
        assert int(listed.stdout) == process.pid
        assert os.getsid(process.pid) == process.pid
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "more", "forks"),
    [
        ([*COMMAND, "check"], {}, True),
        ([sys.executable, "-P", "-m", "vlmrun", "check"], {"VLMRUN_OUTPUT": "x", "RANK": "1"}, True),
        ([sys.executable, "-u", "-m", "vlmrun.worker", "job.json"], {}, True),
        ([*COMMAND, "serve", "merge"], {}, False),
        ([*COMMAND, "check"], {"HF_HOME": "/elsewhere"}, False),
        ([*COMMAND, "check"], {"OMP_NUM_THREADS": "3"}, False),
        ([*COMMAND, "check"], {nest.EXEC: "1"}, False),
        ([sys.executable, "-c", "pass"], {}, False),
        ([sys.executable, "-m", "pip"], {}, False),
        (["/bin/true"], {}, False),
    ],
)
def test_what_is_forked(words, more, forks):
    ours = nest.Nest(None, dict(os.environ))
    environment = [f"{name}={value}".encode() for name, value in (os.environ | more).items()]
    rest = [-1, -1, -1, -1, -1, -1, 5, 6, True, False, -1, None, None, None, -1, None, False]
    request = ours._request(words, (), True, (6, 9), None, environment, *rest)
    assert (request is not None) == forks
    assert not forks or (request.kept, request.environment) == ([9], os.environ | more)
