import json
import shutil

import pytest

from vlmrun.errors import CheckpointError
from vlmrun.train.checkpoint import commit

FACTS = {"engine": "plain", "ranks": 1}


def _write(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.pt").write_bytes(b"a" * 100)
    (folder / "b.pt").write_bytes(b"b" * 100)


def _committed(folder, *steps):
    for step in steps:
        commit.commit(folder, step, _write, FACTS)
    return folder


def test_a_commit_is_found_again(tmp_path):
    _committed(tmp_path, 2, 10)
    found = commit.newest_good(tmp_path)
    assert (found.step, found.path, found.facts) == (10, tmp_path / "step-10", FACTS)
    manifest = json.loads((found.path / commit.MANIFEST).read_text("utf-8"))
    assert set(manifest["files"]) == {"sub/a.pt", "b.pt"}


def test_nothing_there_is_none_without_a_word(tmp_path, caplog):
    assert commit.newest_good(tmp_path / "nowhere") is None
    assert caplog.text == ""


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    _committed(tmp_path, 1)

    def full(folder):
        _write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"(?s)step 2 cannot be written.*No space left.*step 1 is untouched"):
        commit.commit(tmp_path, 2, full, FACTS)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_torchs_own_error_of_a_full_disk_counts_too(tmp_path):
    def full(folder):
        raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(CheckpointError, match=r"unexpected pos.*none was saved before"):
        commit.commit(tmp_path, 2, full, FACTS)


def test_other_errors_are_not_dressed_up(tmp_path):
    def bug(folder):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        commit.commit(tmp_path, 2, bug, FACTS)


def test_half_written_folders_are_ignored(tmp_path):
    _committed(tmp_path, 3)
    (tmp_path / ".tmp-step-6").mkdir()
    assert commit.newest_good(tmp_path).step == 3


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: (p / "b.pt").write_bytes(b"c" * 100), "b.pt: content changed"),
        (lambda p: (p / "b.pt").unlink(), "b.pt: missing"),
        (lambda p: (p / commit.MANIFEST).write_text("{"), "cannot be read"),
        (lambda p: (p / commit.MANIFEST).write_text("[]"), "cannot be read"),
        (lambda p: (p / commit.MANIFEST).unlink(), "no MANIFEST.json"),
        (lambda p: (shutil.rmtree(p), shutil.copytree(p.parent / "step-1", p)), "it is of step 1"),
    ],
)
def test_damage_is_told_and_the_one_before_taken(tmp_path, monkeypatch, harm, said):
    _committed(tmp_path, 1, 2)
    harm(tmp_path / "step-2")
    heard = []
    monkeypatch.setattr(commit.log, "warning", lambda text, *values: heard.append(text % values))
    assert commit.newest_good(tmp_path).step == 1
    assert len(heard) == 1
    assert said in heard[0]
    assert not (tmp_path / "step-2").exists(), "set aside, so that it does not count among the newest"


def test_saving_over_a_set_aside_step_and_pruning(tmp_path):
    _committed(tmp_path, 1, 2)
    (tmp_path / "step-2" / "b.pt").unlink()
    commit.newest_good(tmp_path)
    _committed(tmp_path, 2, 3)
    commit.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-3"]


def test_prune_orders_by_number(tmp_path):
    _committed(tmp_path, 9, 10, 100)
    commit.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-100"]


def test_too_little_space_is_refused_with_numbers(tmp_path, monkeypatch):
    commit.check_space(tmp_path, 5, n_trainable=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000})())
    with pytest.raises(CheckpointError, match="about 161 MB are needed, 10 MB are free"):
        commit.check_space(tmp_path, 5, n_trainable=10_000_000)


def test_other_facts_are_refused_by_name(tmp_path):
    found = commit.newest_good(_committed(tmp_path, 4))
    assert not commit.check_facts(found, FACTS, movable=False)
    assert commit.check_facts(found, FACTS | {"ranks": 2}, movable=True)
    with pytest.raises(CheckpointError, match=r"step 4 does not fit this run \(ranks: 1 then, 2 now\)"):
        commit.check_facts(found, FACTS | {"ranks": 2}, movable=False)
