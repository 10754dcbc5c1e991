"""Locks and look-ups: one process at a time in a stage folder, and a dead one does not block it."""

import multiprocessing
import os
import signal
import time

import pytest

from tests.unit import made
from vlmrun import artifact, locks, store
from vlmrun.artifact import Artifact
from vlmrun.errors import CheckpointError, LaunchError


def hold(folder, ready):
    with locks.lock(folder, wait=False, say=print):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "stage", ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(LaunchError) as refused, locks.lock(tmp_path / "stage", wait=False, say=print):
        pass
    assert f"process {holder.pid}" in str(refused.value)
    assert refused.value.exit_code == 5


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locks.lock(tmp_path / "stage", wait=False, say=print) as fd:
        assert fd > 2


def test_waiting_ends_when_the_holder_ends(tmp_path, holder):
    said = []

    def note(text):
        said.append(text)
        os.kill(holder.pid, signal.SIGKILL)

    with locks.lock(tmp_path / "stage", wait=True, say=note):
        assert len(said) == 1
        assert "waiting for process" in said[0]


def make(root, name, key, created):
    folder = store.folder(root, name, key)
    folder.mkdir(parents=True)
    (folder / "file").write_text("x" * 100)
    item = Artifact(
        name=name, kind="train", key=key, run="r", created=created, parents=[], summary={}, environment={},
        files=artifact.describe_files(folder, ("file",)),
    )  # fmt: skip
    artifact.write_text(folder / artifact.NAME, item.model_dump_json())
    return folder


def test_an_artifact_is_found_by_name_key_or_path(tmp_path):
    old = make(tmp_path, "lora", "aaaa", "2026-01-01")
    new = make(tmp_path, "lora", "bbbb", "2026-01-02")
    assert store.find(tmp_path, "lora") == new
    assert store.find(tmp_path, "lora-aaaa") == old
    assert store.find(tmp_path, "aaaa") == old
    assert store.find(tmp_path, str(old)) == old
    with pytest.raises(CheckpointError, match="did you mean 'lora'"):
        store.find(tmp_path, "lorra")


def test_a_changed_file_is_noticed_by_size_or_content(tmp_path):
    folder = make(tmp_path, "lora", "aaaa", "2026-01-01")
    assert store.finished(folder) is not None
    (folder / "file").write_text("y" * 100)
    with pytest.raises(CheckpointError, match="content changed"):
        store.finished(folder)
    (folder / "file").write_text("y")
    with pytest.raises(CheckpointError, match="1 bytes, was 100"):
        store.finished(folder)
    (folder / "file").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        store.finished(folder)


def test_a_change_that_keeps_size_and_time_is_noticed_by_a_thorough_look(tmp_path):
    folder = make(tmp_path, "lora", "aaaa", "2026-01-01")
    item = artifact.read(folder)
    (folder / "file").write_text("y" * 100)
    os.utime(folder / "file", ns=(item.files["file"].mtime_ns,) * 2)
    artifact.verify(folder, item)
    with pytest.raises(CheckpointError, match="content changed"):
        artifact.verify(folder, item, thorough=True)


def test_a_file_touched_but_unchanged_is_fine(tmp_path):
    folder = make(tmp_path, "lora", "aaaa", "2026-01-01")
    os.utime(folder / "file", ns=(1, 1))
    assert store.finished(folder) is not None


def test_a_torn_artifact_json_is_an_error_not_a_traceback(tmp_path):
    folder = make(tmp_path, "lora", "aaaa", "2026-01-01")
    (folder / artifact.NAME).write_text('{"name": "lora"')
    with pytest.raises(CheckpointError, match=r"artifact\.json cannot be read"):
        store.finished(folder)


def test_a_bare_name_says_which_of_several_it_took(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(store.log, "warning", lambda text, *values: said.append(text % values))
    made.stage(tmp_path, "pretrain", "train", key="a" * 10, minute=1)
    made.stage(tmp_path, "pretrain", "train", key="b" * 10, minute=2)
    made.stage(tmp_path, "merge", "merge")
    assert store.find(tmp_path, "pretrain").name == "pretrain-" + "b" * 10
    assert said == ["pretrain: pretrain-bbbbbbbbbb, the newest of 2 stages of this name"]
    store.find(tmp_path, "pretrain-" + "a" * 10)
    store.find(tmp_path, "merge")
    assert len(said) == 1
