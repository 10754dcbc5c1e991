"""A worker's death is told as what it was."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError
from vlmrun.run import argv, launch


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
    monkeypatch.setattr(argv, "command", lambda *_: [sys.executable, "-c", code])
    with (tmp_path / "lock").open("w") as lock, pytest.raises(error, match=text):
        launch.run(made, lock.fileno())


FINISH = "pathlib.Path('FOLDER/artifact.json').write_text(ARTIFACT)"
ARTIFACT = {
    "name": "merge", "kind": "merge", "key": "k", "run": "r", "created": "c",
    "parents": [], "summary": {}, "environment": {}, "files": {},
}  # fmt: skip


def left(kind, what, reason=None):
    words = json.dumps({"type": kind, "problems": [{"what": what}], "reason": reason})
    return f"pathlib.Path('FOLDER/failure.json').write_text({words!r})"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("pass", "stopped; the same command resumes there"),
        (left("LaunchError", "step 3 is saved", "stopped"), "step 3 is saved"),
        (left("LaunchError", "a neighbor left", "lost_rank"), "stopped; the same command resumes there"),
        (left("VlmrunError", "a bug"), "stopped; the same command resumes there"),
        (left("DataError", "disk full"), "error: disk full"),
        (FINISH, "stage 'merge' had finished when it was stopped; the same command resumes there"),
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
    monkeypatch.setattr(argv, "command", lambda *_: [sys.executable, "-c", code])

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


@pytest.mark.parametrize("times", [1, 2])
def test_a_stop_that_comes_while_a_process_is_started_ends_it(job, monkeypatch, tmp_path, times):
    made = job("merge")
    started = []

    class Stopped(subprocess.Popen):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            started.append(self)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(launch.subprocess, "Popen", Stopped)
    monkeypatch.setattr(argv, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    with (tmp_path / "lock").open("w") as lock, pytest.raises(KeyboardInterrupt, match=r"^stopped; the same command"):
        launch.run(made, lock.fileno())
    assert started[0].returncode == (-signal.SIGTERM if times == 1 else -signal.SIGKILL)
