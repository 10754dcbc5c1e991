"""What needs no lock works where there are none, as on Windows; what needs one says so."""

import os
import subprocess
import sys

import pytest

# Python as Windows has it, as far as it concerns us: no such modules, no such signals.
ELSEWHERE = """
import signal, sys
for name in ("fcntl", "pwd", "grp", "termios", "resource"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL"):
    delattr(signal, name)
from vlmrun.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def elsewhere(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments],
        cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--help",), "usage: vlmrun"),
        (("check", "+recipe=smoke"), "ok: smoke has no problems"),
        (("plan", "+recipe=llava15_7b"), "pretrain"),
        (("ls",), ""),
        (("recipes", "smoke"), "smoke"),
    ],
)
def test_what_reads_works_without_locks(tmp_path, arguments, said):
    done = elsewhere(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stdout


def test_a_run_says_what_is_missing_and_makes_nothing(tmp_path):
    done = elsewhere(tmp_path, "+recipe=smoke")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert "folders cannot be locked on" in done.stderr
    assert "WSL 2" in done.stderr
    assert not (tmp_path / "outputs" / "stages").exists()


def test_python_m_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vlmrun", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("vlmrun 0.")
    wrong = subprocess.run(
        [sys.executable, "-m", "vlmrun", "chekc"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "did you mean 'check'?" in wrong.stderr
