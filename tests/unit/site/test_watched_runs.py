"""`vlmrun watch` on runs that end while it looks, and on runs that are somewhere else."""

import shutil

import pytest

from tests.unit.site.conftest import run
from vlmrun.cli import watch
from vlmrun.errors import CheckpointError
from vlmrun.run import record


@pytest.fixture
def running(tmp_path):
    folder = run(tmp_path / "outputs", "live", 1)
    record.change(folder, lambda one: setattr(one.last, "state", "running"))
    return folder


def failed(one):
    one.last.state, one.last.error = "failed", "no <room> is left"


def killed(one):
    one.last.process = (2**22 + 1, 0.0)


@pytest.mark.parametrize(("how", "shown"), [(failed, "no <room> is left"), (killed, "live/1: interrupted")])
def test_the_end_of_a_run_is_shown_though_no_stage_changed(running, monkeypatch, capsys, how, shown):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            record.change(running, how)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    root = running.parents[2]
    assert watch.main(["live/1", "--output", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.count("live/1: running") == 1
    assert shown in said
    assert "running" not in (root / "site/runs/live/1.html").read_text().partition("<h1>")[2].partition("</h1>")[0]


@pytest.mark.parametrize("once", [[], ["--once"]])
def test_a_run_of_another_root_is_refused_with_the_option(running, tmp_path, once):
    other = tmp_path / "other"
    run(other, "here", 1)
    with pytest.raises(CheckpointError, match="not below the output root") as caught:
        watch.main([str(running), *once, "--output", str(other)])
    assert caught.value.problems[0].fix == f"give its own: --output {running.parents[2]}"


@pytest.mark.parametrize("words", [["live/1"], []])
def test_a_run_below_a_link_that_leads_out_is_refused(running, tmp_path, words):
    elsewhere = tmp_path / "disk"
    shutil.move(running.parent, elsewhere)
    running.parent.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="not below the output root") as caught:
        watch.main([*words, "--output", str(running.parents[2])])
    assert "--output FOLDER" in caught.value.problems[0].fix
