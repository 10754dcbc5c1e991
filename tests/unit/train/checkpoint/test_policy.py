"""Checkpoints sealed beside the training, kept, and read back."""

import threading

import pytest

from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.train.checkpoint import commit
from vlmrun.train.checkpoint.policy import Saver

FACTS = {"ranks": 1}


@pytest.fixture
def slow_disk(monkeypatch):
    """Digests wait until this is set."""
    gate = threading.Event()
    digest = artifact.digest

    def wait(path):
        gate.wait(20)
        return digest(path)

    monkeypatch.setattr(artifact, "digest", wait)
    yield gate
    gate.set()


def saver(folder, *, background=True, limit=2, write=None):
    def content(target):
        (target / "state.pt").write_bytes(b"state" * 100)

    return Saver(folder, write or content, FACTS, n_trainable=10, limit=limit, background=background)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_training_goes_on_while_the_disk_is_slow_and_the_name_comes_last(tmp_path, slow_disk):
    mine = saver(tmp_path)
    mine.save(2)
    assert (mine.waits, mine.works) == (True, True)
    assert names(tmp_path) == [".tmp-step-2"]
    assert commit.newest_good(tmp_path) is None, "it is none yet"
    slow_disk.set()
    mine.finish()
    assert (mine.waits, mine.works) == (False, False)
    assert names(tmp_path) == ["step-2"]
    assert commit.newest_good(tmp_path).step == 2


def test_the_next_one_waits_for_the_one_before(tmp_path):
    mine = saver(tmp_path)
    for step in (2, 4, 6, 8):
        mine.save(step)
    mine.finish()
    assert names(tmp_path) == ["step-6", "step-8"]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    mine = saver(tmp_path, background=False, limit=1)
    for step in (1, 2, 3, 4):
        mine.best = {1: 1, 2: 2, 3: 2, 4: 2}[step]
        mine.save(step)
    assert names(tmp_path) == ["step-2", "step-4"]


def test_what_goes_wrong_in_the_background_is_told(tmp_path, monkeypatch):
    mine = saver(tmp_path)
    mine.save(2)
    mine.finish()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "digest", fail)
    mine.save(4)
    with pytest.raises(CheckpointError, match=r"step 4 cannot be written: .*No space left.*step 2 is untouched"):
        mine.finish()
    assert names(tmp_path) == ["step-2"]


def spoil(path):
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(bytes(content))


def test_the_last_one_is_read_back_and_loaded(tmp_path):
    mine = saver(tmp_path)
    mine.save(4)
    loaded = []
    mine.prove(4, loaded.append, lambda: "as it was")
    assert loaded == [tmp_path / "step-4"]


def test_a_damaged_last_one_is_written_once_more(tmp_path):
    mine = saver(tmp_path, background=False)
    mine.save(2)
    mine.save(4)
    spoil(tmp_path / "step-4" / "state.pt")
    loaded = []
    mine.prove(4, loaded.append, lambda: "as it was")
    assert loaded == [tmp_path / "step-4"]
    assert names(tmp_path) == ["step-2", "step-4"]


def test_a_disk_that_damages_everything_is_told(tmp_path, monkeypatch):
    mine = saver(tmp_path, background=False)
    mine.save(4)
    monkeypatch.setattr(commit, "_verify", lambda path: ("content changed", {}))
    with pytest.raises(CheckpointError, match="cannot be read back as it was written, twice"):
        mine.prove(4, lambda path: None, lambda: "as it was")


def test_a_checkpoint_that_gives_another_state_is_told(tmp_path):
    mine = saver(tmp_path, background=False)
    mine.save(4)
    states = iter(["before", "after"])
    with pytest.raises(CheckpointError, match="gives other weights than it was written from"):
        mine.prove(4, lambda path: None, lambda: next(states))
