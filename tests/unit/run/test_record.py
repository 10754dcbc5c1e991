"""A run's record, the list of runs, conditions on them, and stages that no run refers to."""

import contextlib
import json
import os

import pytest

from vlmrun import artifact
from vlmrun.artifact import Artifact, Parent
from vlmrun.cli import gc, runs
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.outcome import Outcome
from vlmrun.run import filters, garbage, numbers, record


@pytest.fixture
def stage(tmp_path):
    """Makes a finished stage below an output root."""

    def made(name, key, *parents, **summary):
        folder = tmp_path / "stages" / f"{name}-{key}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("{}\n")
        found = Artifact(
            name=name, kind="train", key=key, run="r", created=artifact.now(), summary=summary, environment={},
            parents=[Parent(name=p.artifact.name, key=p.artifact.key, path=str(p.folder)) for p in parents],
            files=artifact.describe_files(folder, ("metrics.jsonl",)),
        )  # fmt: skip
        artifact.write_text(folder / artifact.NAME, found.model_dump_json())
        return Outcome(name, found, folder, reused=False)

    return made


def run(root, name, outcomes=(), error=None, **config):
    """A run as the command keeps it."""
    folder = numbers.claim(root / "runs" / name, json.dumps(config))
    overrides = [f"{key}={value}" for key, value in config.items()]
    ends = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with ends, record.kept(folder, name, config, overrides, lambda: outcomes):
        if error is not None:
            raise error
    return folder


def test_a_finished_run(tmp_path, stage):
    lora = stage("lora", "a" * 10, loss=0.5)
    folder = run(tmp_path, "exp", [lora], seed=1)
    found = record.read(folder)
    assert (found.name, found.number, found.state) == ("exp", 1, "finished")
    assert found.config == {"seed": 1}
    assert found.stages["lora"].key == "a" * 10
    assert found.last.ended >= found.last.started
    assert found.last.versions["python"]
    assert (tmp_path / "runs" / "exp" / "latest").resolve() == folder


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("no"), "failed"), (KeyboardInterrupt("stopped at step 3"), "stopped")]
)
def test_a_run_that_ends_otherwise_keeps_what_ended_it(tmp_path, stage, error, state):
    found = record.read(run(tmp_path, "exp", [stage("lora", "a" * 10)], error))
    assert (found.state, found.last.error) == (state, str(error))
    assert list(found.stages) == ["lora"], "what was finished before"


def test_a_run_whose_process_is_gone_was_interrupted(tmp_path):
    folder = run(tmp_path, "exp")
    found = record.read(folder)
    found.last.state, found.last.process = "running", (os.getpid(), 1.0)
    record.write(folder, found)
    assert record.read(folder).state == "interrupted"
    found.last.host = "another machine, Linux"
    record.write(folder, found)
    assert record.read(folder).state == "running", "nobody here can say"


def test_the_same_configuration_is_another_launch_and_another_one_another_run(tmp_path):
    first = run(tmp_path, "exp", seed=1)
    assert run(tmp_path, "exp", seed=1) == first
    assert len(record.read(first).launches) == 2
    second = run(tmp_path, "exp", seed=2)
    assert (second.name, record.read(first).config) == ("2", {"seed": 1})


def test_tags_given_while_a_run_goes_on_are_kept(tmp_path):
    folder = numbers.claim(tmp_path / "runs" / "exp", "{}")
    with record.kept(folder, "exp", {}, [], list):
        runs.main(["tag", "exp", "good", "--output", str(tmp_path)])
    assert record.read(folder).tags == ["good"]
    assert record.read(folder).state == "finished"


def test_code_and_what_is_not_committed(tmp_path, monkeypatch):
    import subprocess

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "mine.py").write_text("a = 1\n")
    git("add", "mine.py")
    git("commit", "-qm", "one")
    (tmp_path / "mine.py").write_text("a = 2\n")
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path / "outputs", "exp")
    assert record.read(folder).last.code["dirty"] is True
    assert "+a = 2" in (folder / record.PATCH).read_text()


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("stage.lora.optim.lr>1e-4", True),
        ("stage.lora.optim.lr > 2e-4", False),
        ("stage.lora.optim.lr=2e-4", True),
        ("hardware.gpu=cpu", True),
        ("hardware.gpu!=cpu", False),
        ("hardware.gpu>1", False),
        ("lora.loss<0.6", True),
        ("lora.accuracy<0.6", False),
        ("nothing.here=1", False),
    ],
)
def test_conditions(tmp_path, stage, text, holds):
    config = {"stage": {"lora": {"optim": {"lr": 2e-4}}}, "hardware": {"gpu": "cpu"}}
    found = record.read(run(tmp_path, "exp", [stage("lora", "a" * 10, loss=0.5)], **config))
    assert filters.parse(text).holds(found) is holds


def test_what_is_no_condition_is_refused():
    with pytest.raises(ConfigError, match="no condition"):
        filters.parse("lr")


def listed(root, capsys, *words):
    capsys.readouterr()
    assert runs.main([*words, "--output", str(root), "--json"]) == 0
    return [one["run"] for one in json.loads(capsys.readouterr().out)]


def test_the_list_and_its_filters(tmp_path, stage, capsys):
    run(tmp_path, "exp", [stage("lora", "a" * 10, loss=0.5)], seed=1)
    run(tmp_path, "exp", error=ValueError("no"), seed=2)
    run(tmp_path, "other", seed=3)
    assert listed(tmp_path, capsys) == ["exp/1", "exp/2", "other/1"]
    assert listed(tmp_path, capsys, "exp") == ["exp/1", "exp/2"]
    assert listed(tmp_path, capsys, "--state", "failed") == ["exp/2"]
    assert listed(tmp_path, capsys, "--where", "seed>=2", "--where", "seed<3") == ["exp/2"]
    for words in (["tag", "exp/1", "a", "b"], ["untag", "exp/1", "a"], ["note", "exp/1", "so", "good"]):
        runs.main([*words, "--output", str(tmp_path)])
    assert listed(tmp_path, capsys, "--tag", "b") == ["exp/1"]
    assert record.read(tmp_path / "runs" / "exp" / "1").note == "so good"
    runs.main(["archive", "exp/1", "--output", str(tmp_path)])
    assert listed(tmp_path, capsys) == ["exp/2", "other/1"]
    assert listed(tmp_path, capsys, "--all") == ["exp/1", "exp/2", "other/1"]


def test_one_run_is_shown(tmp_path, stage, capsys):
    run(tmp_path, "exp", [stage("lora", "a" * 10)], ValueError("disk full"))
    runs.main(["show", "exp", "--output", str(tmp_path)])
    said = capsys.readouterr().out
    assert "disk full" in said
    assert "a" * 10 in said


def test_a_name_of_no_run_is_answered_with_the_nearest(tmp_path):
    run(tmp_path, "exp")
    with pytest.raises(CheckpointError, match="exp/1"):
        runs.find(tmp_path, "exq/1")


def test_stages_of_removed_runs_are_freed_and_no_others(tmp_path, stage, capsys):
    base = stage("instruct", "a" * 10)
    lora, other = stage("lora", "b" * 10, base), stage("lora", "c" * 10, base)
    run(tmp_path, "exp", [lora], seed=1)
    run(tmp_path, "exp", [other], seed=2)
    assert garbage.unused(tmp_path) == []
    assert runs.main(["remove", "exp/2", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "runs" / "exp" / "latest").resolve().name == "1"
    assert gc.main(["--output", str(tmp_path)]) == 0
    assert other.folder.is_dir(), "nothing is removed unasked"
    assert "nothing was removed" in capsys.readouterr().out
    assert gc.main(["--yes", "--output", str(tmp_path)]) == 0
    assert not other.folder.exists()
    assert lora.folder.is_dir()
    assert base.folder.is_dir(), "the parent of one that is kept"


def test_a_stage_that_a_process_works_in_is_not_removed(tmp_path, stage, capsys):
    from vlmrun import locks

    lora = stage("lora", "a" * 10)
    with locks.lock(lora.folder, wait=False, say=print):
        assert gc.main(["--yes", "--output", str(tmp_path)]) == 5
    assert (lora.folder / artifact.NAME).is_file()
