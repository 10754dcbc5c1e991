"""Whatever happens to a stage, its worker ends with an exit code and a sentence, even when no file can hold it."""

import errno
import json
import logging
import os
import signal
import subprocess
import types

import pytest

from vlmrun import artifact, back, graph, logs, worker
from vlmrun.config.compose import compose
from vlmrun.config.job import FAILURE_FILE
from vlmrun.config.validate import validate
from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError, error_from_dict
from vlmrun.run import identity, pipeline


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    """`run_stage(execute)`: the exit code of a worker whose stage is that function."""
    monkeypatch.setattr(logging, "raiseExceptions", True)  # a worker sets it for its whole process

    def start(execute, output=tmp_path):
        composed = compose(["+recipe=smoke", f"output={output}"])
        run, _ = validate(composed.tree, composed.problems)
        planned, _ = graph.plan(run)
        whole = pipeline.Run(run, planned, identity.keys(planned, run), output / "runs" / "smoke")
        job = pipeline.job_of(whole, next(item for item in planned if item.name == "merge"))
        job.path.mkdir(parents=True)
        (job.path / "job.json").write_text(job.to_json())
        monkeypatch.setattr(back, "stage", lambda job: types.SimpleNamespace(execute=execute))
        return worker.main([str(job.path / "job.json")])

    yield start
    logs.setup()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is refused")
    yield folder
    for file in folder.rglob("weights-*"):
        file.unlink()
    try:
        logs.setup()  # closes the worker's log, which lies on it
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_an_error_on_a_full_disk_is_printed_when_it_cannot_be_left(run_stage, small_disk, capsys):
    def fill(job):
        for n_bytes in (65536, 4096, 1):
            try:
                with (job.path / f"weights-{n_bytes}").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * n_bytes)
            except OSError as error:
                full = error
        worker.log.info("a line that finds no room in the log")
        raise full

    assert run_stage(fill, small_disk) == 3
    said = capsys.readouterr().err
    assert "error: No space left on device" in said
    assert "fix: free space" in said
    assert "Traceback" not in said
    assert not list(small_disk.rglob(FAILURE_FILE))


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_that_cannot_be_left_keeps_its_exit_code(run_stage, monkeypatch, capsys):
    def fail(job):
        raise CheckpointError("damaged", "there", "make it again")

    monkeypatch.setattr(artifact, "write_json", refuse)
    assert run_stage(fail) == 4
    assert "error: damaged\n  at:  there\n  fix: make it again" in capsys.readouterr().err


def test_the_traceback_of_a_bug_is_shown_when_it_cannot_be_kept(run_stage, capsys, tmp_path):
    def fail(job):
        (job.path / "logs" / "traceback-0.txt").mkdir()  # nobody can write there, root neither
        raise ZeroDivisionError("a bug")

    assert run_stage(fail) == 1
    assert "in fail" in capsys.readouterr().err
    (left,) = tmp_path.rglob(FAILURE_FILE)
    assert "ZeroDivisionError: a bug" in left.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stage_with_130_and_without_a_traceback(run_stage, capsys, tmp_path, number):
    before = signal.getsignal(number)

    def be_stopped(job):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did nothing")

    assert run_stage(be_stopped) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.rglob(FAILURE_FILE))
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", ["cause", "echo"])
def test_the_rank_that_failed_is_heard_over_those_that_lost_it(tmp_path, first):
    job = types.SimpleNamespace(path=tmp_path, name="lora")
    errors = {
        "cause": DataError("5.png is no picture"),
        "echo": LaunchError("rank 0: Connection closed", reason="lost_rank"),
    }
    for name in sorted(errors, key=lambda name: name != first):
        assert worker._leave(job, errors[name]) == errors[name].exit_code
    assert "5.png is no picture" in (tmp_path / FAILURE_FILE).read_text()


def test_a_problem_is_placed_at_the_stage_by_its_name(run_stage, tmp_path):
    def refuse(job):
        raise ConfigError("rows are mixed up", "stage.*.packing", "stage.*.packing=null")

    assert run_stage(refuse) == 2
    (left,) = tmp_path.rglob(FAILURE_FILE)
    (problem,) = error_from_dict(json.loads(left.read_text())).problems
    assert (problem.where, problem.fix) == ("stage.merge.packing", "stage.merge.packing=null")


@pytest.mark.parametrize("writable", [True, False])
def test_shared_memory_that_cannot_be_written_is_named_as_itself(run_stage, tmp_path, monkeypatch, writable):
    """A loader's process asks for it without a file name: the error's place would be the stage's folder."""
    monkeypatch.setattr(worker.os, "access", lambda path, mode: writable)

    def hand_over(job):
        raise OSError(errno.EROFS, "Read-only file system")

    assert run_stage(hand_over) == 3
    (left,) = tmp_path.rglob(FAILURE_FILE)
    (problem,) = error_from_dict(json.loads(left.read_text())).problems
    assert (problem.where == "/dev/shm") is not writable
    assert ("workers=0" in problem.fix) is not writable
