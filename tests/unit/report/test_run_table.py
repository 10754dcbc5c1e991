"""The tables at the end of a run and of a sweep."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest

from tests.unit import made
from vlmrun.errors import DataError
from vlmrun.outcome import Job
from vlmrun.report import run_table, tables
from vlmrun.report.tables import Column, Grid


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    pretrain = made.train(root, "pretrain", [3.0, 2.0, 1.5])
    merge = made.stage(root, "merge", "merge", {"tensors": 7, "seconds": 1.0}, (pretrain,))
    answers = [made.answer(1), made.answer(2), made.answer(3), made.answer(4, correct=False)]
    judged = made.evaluate(root, "judge", answers, tmp_path, parents=(merge,))
    return [made.outcome(pretrain, reused=True), made.outcome(merge), made.outcome(judged)]


def test_a_summary_has_what_a_kind_has_and_none_elsewhere(outcomes):
    train, merge, judged = run_table.summary(outcomes)
    assert (train.numbers["steps"], train.numbers["loss"], train.reused) == (3, 1.5, True)
    assert "accuracy" not in train.numbers
    assert (merge.numbers.keys() & {"steps", "loss", "accuracy"}, merge.seconds, merge.reused) == (set(), 1.0, False)
    shares = [judged.numbers[key] for key in ("accuracy", "accuracy_unseen", "chance", "shuffled")]
    assert shares == [0.75, 0.5, 0.25, 0.31]
    assert "loss" not in judged.numbers


def test_a_pipe_gets_aligned_text_without_boxes_or_colour(outcomes, capsys):
    run_table.show(run_table.summary(outcomes), "demo")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.isascii()
    assert "\x1b" not in captured.out
    title, head, train, merge, judged = captured.out.splitlines()
    assert title == "demo: 3 stages, 1 of them reused, 4.2 s of work"
    assert train.split() == ["pretrain", "train", "3", "1.5000", "12.5", "reused", "outputs/stages/pretrain-0000000365"]
    assert judged.split()[2:7] == ["75.0%", "50.0%", "25.0%", "31.0%", "3.2"]
    for line in (train, merge, judged):  # each path begins below its title
        assert line.index("outputs/") == head.index("artifact")


def test_a_column_nobody_fills_is_left_out(tmp_path, capsys):
    run_table.show(run_table.summary([made.outcome(made.train(tmp_path, "pretrain", [1.0]))]), "demo")
    head = capsys.readouterr().out.splitlines()[1]
    assert "loss" in head
    assert "accuracy" not in head


def test_a_run_without_stages_has_an_empty_table(capsys):
    run_table.show([], "demo")
    assert capsys.readouterr().out.startswith("demo: 0 stages")


@pytest.mark.parametrize(
    ("loss", "text"), [(None, ""), (2.5, "2.5000"), (0.0, "0.0000"), (3.14e-5, "3.1e-05"), (math.nan, "nan")]
)
def test_losses_stay_readable(loss, text):
    assert run_table.loss_text(loss) == text


def test_a_terminal_gets_a_drawing_and_no_color_takes_it_away(monkeypatch):
    lines = Grid("title", [Column("a"), Column("b", right=True)], [["x", "1"], ["y", "22"]], ["dim", ""])
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    drawn = Terminal()
    tables.write(lines, drawn)
    assert "─" in drawn.getvalue()
    assert "\x1b[" in drawn.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    said = Terminal()
    tables.write(lines, said)
    assert said.getvalue() == "title\na   b\nx   1\ny  22\n"


def test_a_narrow_terminal_lists_paths_whole_below(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    path = "outputs/stages/pretrain-0123456789"
    stream = Terminal()
    columns = [Column("stage"), Column("steps", right=True), Column("artifact", below=True)]
    tables.write(Grid("", columns, [["pretrain", "12", path]]), stream)
    assert path in stream.getvalue()
    assert stream.getvalue().index("12") < stream.getvalue().index(path)


def test_text_that_looks_like_markup_is_shown_as_it_is(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    tables.write(Grid("", [Column("overrides")], [["only=[lora]"]]), stream)
    assert "only=[lora]" in stream.getvalue()


@pytest.mark.parametrize(("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB")])
def test_sizes(n_bytes, text):
    assert tables.bytes_text(n_bytes) == text


def test_a_sweep_compares_accuracy_and_says_why_a_trial_failed(outcomes, tmp_path, capsys):
    error = DataError("image 'a.png' is\ndamaged", "a.json[3]")
    jobs = [
        Job(0, ["lr=1e-3"], tmp_path / "sweep" / "0", outcomes, None),
        Job(1, ["lr=3e-3"], tmp_path / "sweep" / "1", [], error),
    ]
    jobs[0].folder.mkdir(parents=True)
    run_table.compare(jobs)
    title, head, good, bad = capsys.readouterr().out.splitlines()
    assert title == "sweep of 2 trials, 1 failed"
    assert head.split() == ["trial", "overrides", "state", "judge", "ran", "reused", "run"]
    assert good.split() == ["0", "lr=1e-3", "ok", "75.0%", "2", "1", "sweep/0"]
    assert "failed: image 'a.png' is" in bad
    assert "damaged" not in bad


def test_a_sweep_without_evaluation_shows_the_last_loss(outcomes, tmp_path, capsys):
    run_table.compare([Job(0, [], tmp_path, outcomes[:2], None)])
    head, line = capsys.readouterr().out.splitlines()[1:]
    assert "loss" in head
    assert "1.5000" in line


def test_a_very_long_error_does_not_break_the_table(tmp_path, capsys):
    run_table.compare([Job(0, [], tmp_path, [], DataError("x" * 500))])
    assert "x" * 67 + "..." in capsys.readouterr().out
