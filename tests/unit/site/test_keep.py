"""Pages are kept up while a run works: whatever their process does, the run goes on and ends in time."""

import contextlib
import subprocess
import sys
import time

import pytest

from vlmrun.site import keep

HANGS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def on(monkeypatch):
    monkeypatch.setenv(keep.OFF, "on")
    keep._warn.cache_clear()


@pytest.fixture
def command(monkeypatch):
    """Gives every process of the site another program; they are listed as they start."""

    def make(text):
        started = []

        def start(root, said):
            started.append(subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL, stderr=said))
            return started[-1]

        monkeypatch.setattr(keep, "_start", start)
        return started

    return make


def warnings(caplog):
    return [entry.getMessage() for entry in caplog.records]


@pytest.mark.parametrize("error", [None, ValueError("the run's own"), KeyboardInterrupt()])
def test_one_that_hangs_ends_with_the_run(tmp_path, monkeypatch, caplog, command, error):
    started = command(HANGS)
    for name, value in (("_SECONDS", 0.05), ("_LAST", 0.5), ("_GRACE", 0.3)):
        monkeypatch.setattr(keep, name, value)
    ends = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with ends, keep.kept(tmp_path):
        while not started:
            time.sleep(0.02)
        time.sleep(0.5)
        began = time.monotonic()
        if error:
            raise error
    assert time.monotonic() - began < 10
    assert len(started) == (1 if isinstance(error, KeyboardInterrupt) else 2)
    assert all(process.poll() is not None for process in started)
    said = warnings(caplog)
    assert all("the site is not up to date: it takes longer" in line for line in said)
    assert len(said) == len(started) - 1


def test_one_that_fails_is_said_once_and_fails_no_run(tmp_path, caplog, command):
    started = command("import sys; sys.exit('error: no room')")
    for _ in range(3):
        with keep.kept(tmp_path):
            pass
    assert len(started) == 3
    assert warnings(caplog) == ["the site is not up to date: error: no room"]


@pytest.mark.parametrize("text", ["import sys; sys.exit(130)", "import os; os.kill(os.getpid(), 15)"])
def test_one_that_was_interrupted_is_no_warning(tmp_path, caplog, command, text):
    command(text)
    with keep.kept(tmp_path):
        pass
    assert warnings(caplog) == []


@pytest.mark.parametrize("error", [OSError("no process"), ValueError("odd"), RuntimeError("odd")])
def test_one_that_cannot_be_started_fails_no_run(tmp_path, monkeypatch, caplog, error):
    def fail(*given):
        raise error

    monkeypatch.setattr(keep, "_start", fail)
    with keep.kept(tmp_path):
        pass
    assert warnings(caplog) == [f"the site is not up to date: {type(error).__name__}: {error}"]


def test_no_thread_is_left_and_the_last_pages_are_written(tmp_path, monkeypatch, command):
    started = command("")

    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(keep.threading.Thread, "start", fail)
    with keep.kept(tmp_path):
        pass
    assert [process.returncode for process in started] == [0]


def test_a_folder_of_somebody_else_is_logged_and_left_alone(tmp_path, caplog):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("of mkdocs")
    with keep.kept(tmp_path):
        pass
    (said,) = warnings(caplog)
    assert "not a site that vlmrun wrote" in said
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]
