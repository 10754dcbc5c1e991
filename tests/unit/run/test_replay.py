"""A run again: where it goes, what it runs, and what counts as equal."""

from __future__ import annotations

import json

import pytest

from tests.unit import made
from vlmrun import store
from vlmrun.artifact import environment
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.run import replay
from vlmrun.run.record import Launch, Record, Stage


def launch(folder, state="finished"):
    return Launch(
        started="2026-01-01T00:00:00", state=state, command="vlmrun", folder=str(folder), host="h", process=(1, 0.0),
        gpus=[], versions=environment(), code=None,
    )  # fmt: skip


@pytest.fixture
def known(smoke, tmp_path):
    def make(*overrides, stages=()):
        config = smoke(*overrides).model_dump(mode="json", by_alias=True)
        found = {
            name: Stage(key=f"{sum(map(ord, name)):010x}", kind="train", reused=False, numbers={}) for name in stages
        }
        return Record(name="smoke", number=1, overrides=[], config=config, launches=[launch(tmp_path)], stages=found)

    return make


def test_the_configuration_is_the_recorded_one_below_another_root(known, smoke, tmp_path):
    config = replay.config_of(known("stage.lora.optim.lr=3e-4"), tmp_path / "again")
    assert config.output == str(tmp_path / "again")
    assert config.model_copy(update={"output": "outputs"}) == smoke("stage.lora.optim.lr=3e-4")


def test_stages_that_a_chosen_one_starts_from_are_run_too(known, tmp_path):
    config = replay.config_of(known("only=[eval_merge]"), tmp_path)
    assert set(config.only) == {"pretrain", "instruct", "lora", "merge", "eval_merge"}


def test_a_record_that_this_version_does_not_take_is_refused(known, tmp_path):
    found = known()
    found.config["stage"]["lora"]["optim"]["lrr"] = 1
    with pytest.raises(ConfigError, match=r"unknown key 'lrr'"):
        replay.config_of(found, tmp_path)
    found.launches[0].folder = str(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="not here"):
        replay.folder_of(found)


def test_a_finished_replay_is_kept_and_an_interrupted_one_resumed(tmp_path):
    first = replay.root_of(tmp_path, "smoke/1")
    assert first == tmp_path / "replays" / "smoke-1" / "1"
    run = first / "runs" / "smoke" / "1"
    run.mkdir(parents=True)
    assert replay.root_of(tmp_path, "smoke/1") == first
    for state, expected in (("stopped", first), ("finished", first.with_name("2"))):
        record = Record(name="smoke", number=1, overrides=[], config={}, launches=[launch(tmp_path, state)])
        (run / "run.json").write_text(record.model_dump_json())
        assert replay.root_of(tmp_path, "smoke/1") == expected


def test_times_do_not_count_and_everything_else_does(known, tmp_path):
    roots = tmp_path / "outputs", tmp_path / "again"
    stages = ("same", "slower", "other", "gone")
    for root, seconds in zip(roots, (1.0, 2.0), strict=True):
        for name in stages:
            folder = store.folder(root, name, f"{sum(map(ord, name)):010x}")
            folder.mkdir(parents=True)
            row = {"step": 1, "loss": 0.5, "seconds": 1.0, "wait_seconds": 0.1}
            if name == "slower":
                row |= {"seconds": seconds, "wait_seconds": seconds}
            if name == "other":
                row |= {"loss": seconds}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            if not (name == "gone" and root == roots[1]):
                made.stage(root, name, "train")
    found = {one.name: one for one in replay.compare(roots[0], known(stages=stages), roots[1])}
    assert {name for name, one in found.items() if one.equal} == {"same", "slower"}
    assert found["other"].differ == ("metrics.jsonl",)
    assert found["gone"].missing == "the replay has no such stage"
    other = known(stages=stages)
    other.stages["same"].key = "0" * 10
    assert replay.compare(roots[0], other, roots[1])[0].missing.endswith("is gone")


def test_libraries_that_changed_are_named(known):
    found = known()
    assert replay.changed(found) == []
    found.launches[0].versions["torch"] = "1.0"
    assert replay.changed(found) == [f"torch 1.0, now {environment()['torch']}"]


def test_nothing_is_taken_from_the_caches_of_the_first_run(known, tmp_path):
    caches = [f"stage.pretrain.{name}={tmp_path}" for name in ("tower_cache", "image_cache")]
    found = known(*caches)
    assert found.config["stage"]["pretrain"]["tower_cache"] == str(tmp_path)
    stage = replay.config_of(found, tmp_path / "again").stage["pretrain"]
    assert (stage.tower_cache, stage.image_cache) == (None, None)
