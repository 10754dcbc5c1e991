"""A run's record, the list of runs, conditions on them, and stages that no run refers to."""

import contextlib
import dataclasses
import json
import os

import pytest

from vlmrun import artifact
from vlmrun.artifact import Artifact, Parent
from vlmrun.cli import gc, runs
from vlmrun.errors import CheckpointError, ConfigError, LaunchError
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


@dataclasses.dataclass
class Config:
    """As much of a composed run as a record wants."""

    name: str
    values: dict

    def model_dump(self, **how):
        return self.values


def kept(folder, name, config, outcomes=(), config_dirs=()):
    overrides = [f"{key}={value}" for key, value in config.items()]
    return record.kept(folder, Config(name, config), (overrides, config_dirs), lambda: outcomes)


def run(root, name, outcomes=(), error=None, **config):
    """A run as the command keeps it."""
    folder = numbers.claim(root / "runs" / name, json.dumps(config))
    ends = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with ends, kept(folder, name, config, outcomes):
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

    def of_another_process(found):
        found.last.state, found.last.process = "running", (os.getpid(), 1.0)

    def elsewhere(found):
        found.last.host = "another machine, Linux"

    assert record.change(folder, of_another_process).state == "interrupted"
    assert record.change(folder, elsewhere).state == "running", "it cannot be known here"
    with pytest.raises(LaunchError, match="not ended"):
        runs.main(["remove", "exp/1", "--output", str(tmp_path)])
    assert runs.main(["remove", "exp/1", "--force", "--output", str(tmp_path)]) == 0
    assert not folder.exists()


def test_the_same_configuration_is_another_launch_and_another_one_another_run(tmp_path):
    first = run(tmp_path, "exp", seed=1)
    assert run(tmp_path, "exp", seed=1) == first
    assert len(record.read(first).launches) == 2
    second = run(tmp_path, "exp", seed=2)
    assert (second.name, record.read(first).config) == ("2", {"seed": 1})


def test_tags_given_while_a_run_goes_on_are_kept(tmp_path):
    folder = numbers.claim(tmp_path / "runs" / "exp", "{}")
    with kept(folder, "exp", {}):
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
    (tmp_path / "new.py").touch()
    again = run(tmp_path / "outputs", "exp")
    first, second = (launch.code for launch in record.read(again).launches)
    assert first["changed"][0] == " M mine.py"
    assert "?? new.py" in second["changed"]
    patch = folder / first["patch"]
    assert "+a = 2" in patch.read_text()
    assert patch.stat().st_mode & 0o077 == 0, "what is not committed may be secret"
    assert second["patch"] != first["patch"]


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


def test_two_launches_of_one_run_end_by_themselves(tmp_path, stage):
    folder = numbers.claim(tmp_path / "runs" / "exp", "{}")
    with kept(folder, "exp", {}), pytest.raises(ValueError), kept(folder, "exp", {}, [stage("lora", "a" * 10)]):
        raise ValueError("the second one")
    first, second = record.read(folder).launches
    assert (first.state, second.state) == ("finished", "failed")
    assert list(record.read(folder).stages) == ["lora"], "what one launch finished stays"


def test_a_disk_that_cannot_be_written_costs_the_record_only(tmp_path, monkeypatch, caplog):
    folder = numbers.claim(tmp_path / "runs" / "exp", "{}")

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.artifact, "write_text", full)
    with pytest.raises(ValueError, match="the stage's own"), kept(folder, "exp", {}):
        raise ValueError("the stage's own")
    assert "record is not kept" in caplog.text


def test_the_command_is_the_one_that_was_asked_for(tmp_path):
    folder = numbers.claim(tmp_path / "runs" / "exp", "{}")
    with kept(folder, "exp", {"name": "a b"}, config_dirs=["my conf"]):
        pass
    assert record.read(folder).last.command == "vlmrun '--config-dir=my conf' 'name=a b'"


def test_keys_and_names_that_no_run_has_are_named(tmp_path):
    run(tmp_path, "exp", seed=1)
    with pytest.raises(ConfigError, match="no run has 'sead'"):
        runs.main(["--where", "sead=1", "--output", str(tmp_path)])
    with pytest.raises(CheckpointError, match="did you mean 'exp'"):
        runs.main(["exq", "--output", str(tmp_path)])


def test_the_number_of_a_removed_run_is_not_given_again(tmp_path):
    run(tmp_path, "exp", seed=1)
    run(tmp_path, "exp", seed=2)
    runs.main(["remove", "exp/2", "--output", str(tmp_path)])
    assert run(tmp_path, "exp", seed=3).name == "3"


def test_removing_a_run_of_an_earlier_version_leaves_the_numbered_ones(tmp_path):
    base = tmp_path / "runs" / "exp"
    base.mkdir(parents=True)
    (base / "config.yaml").write_text(json.dumps({"seed": 0}))
    assert run(tmp_path, "exp", seed=0) == base
    newer = run(tmp_path, "exp", seed=1)
    runs._remove(tmp_path, base, record.read(base), force=False)
    assert newer.is_dir()
    assert record.read(base) is None


def begun(root, name, key, **job):
    """A stage that did not finish."""
    folder = root / "stages" / f"{name}-{key}"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def test_unfinished_stages_and_what_they_start_from_are_kept(tmp_path, stage):
    base, data = stage("instruct", "a" * 10), stage("shapes", "d" * 10)
    lora = begun(tmp_path, "lora", "b" * 10, parents={"instruct": str(base.folder)}, prepared=[str(data.folder)])
    assert garbage.unused(tmp_path) == []
    assert [one.folder for one in garbage.unused(tmp_path, unfinished=True)] == sorted([base.folder, data.folder, lora])


def test_a_stage_that_a_run_names_by_its_path_is_kept(tmp_path, stage):
    base = stage("instruct", "a" * 10)
    run(tmp_path, "exp", stage={"lora": {"init_from": f"{base.folder}/weights"}})
    assert garbage.unused(tmp_path) == []


def test_links_and_folders_of_others_are_never_listed(tmp_path, stage):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "stages" / "mine").mkdir(parents=True)
    (tmp_path / "stages" / "shared-aaaaaaaaaa").symlink_to(elsewhere)
    assert garbage.unused(tmp_path) == []


def test_a_parent_is_known_by_its_key_where_the_root_was_moved(tmp_path, stage):
    base = stage("instruct", "a" * 10)
    run(tmp_path, "exp", [stage("lora", "b" * 10, base)])
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    tmp_path.mkdir()
    assert garbage.unused(moved) == []


def test_a_stage_that_a_run_needs_by_now_is_kept(tmp_path, stage):
    lora = stage("lora", "a" * 10)
    (listed,) = garbage.unused(tmp_path)
    run(tmp_path, "exp", [lora])
    assert garbage.remove(tmp_path, listed, unfinished=False) is False
    assert lora.folder.is_dir()


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
