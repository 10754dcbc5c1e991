"""A run whose stages are finished is finished: neither a closed stdout nor damaged files beside it fail it."""

import contextlib
import json
import os

import pytest

from tests.unit import made
from vlmrun import logs
from vlmrun.artifact import read
from vlmrun.cli import train
from vlmrun.doctor import evidence
from vlmrun.outcome import Outcome
from vlmrun.run import pipeline, record


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The words of a run whose one stage is there at once."""
    stage = made.train(tmp_path, "pretrain", [3.0, 2.0, 0.5])

    def execute(run, others):
        run.outcomes.append(Outcome("pretrain", read(stage), stage, reused=False))

    monkeypatch.setattr(pipeline, "execute", execute)
    monkeypatch.setattr(logs, "setup", lambda: None)  # of the whole process
    return ["+recipe=smoke", "only=[pretrain]", f"output={tmp_path}"]


@contextlib.contextmanager
def closed():
    """A stdout whose reader is gone."""
    ours, theirs = os.pipe()
    os.close(ours)
    stream = os.fdopen(theirs, "w")
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_a_closed_stdout_costs_the_print_alone(finished, tmp_path):
    with closed():
        assert train.train(finished) == 0
    found = record.read(tmp_path / "runs/smoke/1")
    assert (found.state, list(found.stages)) == ("finished", ["pretrain"])


def test_points_of_a_sweep_with_a_closed_stdout_are_finished(finished, tmp_path):
    with closed():
        assert train.train(["-m", *finished, "seed=1,2"]) == 0
    (file,) = (tmp_path / "sweeps").glob("*/sweep.json")
    points = json.loads(file.read_text())
    assert [(point["error"], list(point["stages"])) for point in points] == [(None, ["pretrain"])] * 2


def test_a_failed_point_of_a_sweep_with_a_closed_stdout_is_the_exit_code(finished):
    with closed():
        assert train.train(["-m", *finished, "stage.pretrain.micro_batch=8,0"]) == 2


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyError("odd"), RecursionError("odd")])
def test_a_doctor_that_fails_costs_one_line(finished, monkeypatch, capsys, caplog, error):
    said = []

    def fail(folders):
        said.append(capsys.readouterr().out)
        raise error

    monkeypatch.setattr(evidence, "read", fail)
    assert train.train(finished) == 0
    lines = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert [line.startswith("whether the model has learned") and "\n" not in line for line in lines] == [True]
    assert "report: " in said[0], "before the doctor looks"
