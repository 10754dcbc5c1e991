"""Rows that many processes add to one folder: what is read is what was added, whatever happened to the files."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.model.feature_shards import KEY_BYTES, FeatureShards

DESCRIBED = ["float32", [[2, 3]]]


def key(number):
    return number.to_bytes(KEY_BYTES, "big")


def row(number, size=24):
    return bytes((number + place) % 256 for place in range(size))


def filled(folder, numbers):
    shards = FeatureShards(folder)
    for number in numbers:
        if shards.all([key(number)]) == [None]:
            shards.add(key(number), row(number), DESCRIBED)
    shards.close()
    return FeatureShards(folder)


def test_rows_come_back(tmp_path):
    shards = filled(tmp_path / "cache", range(300))
    assert (len(shards), shards.described, shards.n_bytes) == (300, DESCRIBED, 24)
    assert shards.all([key(7), key(299), key(7)]) == [row(7), row(299), row(7)]
    assert shards.all([key(7), key(300)]) == [row(7), None]
    assert shards.get(key(300)) is None


def test_nothing_is_made_before_a_row_is_added(tmp_path):
    assert len(FeatureShards(tmp_path / "cache")) == 0
    assert not (tmp_path / "cache").exists()


def test_rows_of_others_are_found_while_both_go_on(tmp_path):
    one, other = FeatureShards(tmp_path), FeatureShards(tmp_path)
    one.add(key(1), row(1), DESCRIBED)
    assert other.all([key(1)]) == [row(1)]
    other.add(key(2), row(2), DESCRIBED)
    one.add(key(3), row(3), DESCRIBED)
    assert one.all([key(2), key(3)]) == [row(2), row(3)]
    assert other.all([key(3), key(2), key(1)]) == [row(3), row(2), row(1)]


def test_a_row_is_kept_once(tmp_path):
    shards = FeatureShards(tmp_path)
    for _ in range(3):
        shards.add(key(1), row(1), DESCRIBED)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.rows")) == 24


def test_a_row_of_another_kind_is_refused(tmp_path):
    shards = filled(tmp_path, [1])
    with pytest.raises(ValueError, match="float16"):
        shards.add(key(2), row(2), ["float16", [[2, 3]]])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_found_and_never_handed_out(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cache")
    filled(folder, range(12))
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    shards = FeatureShards(folder)
    found = {number: shards.get(key(number)) for number in range(12)}
    assert all(value in (None, row(number)) for number, value in found.items())
    shards.close()
    # What is missing is added once, and found ever after.
    again = filled(folder, range(12))
    assert again.all([key(number) for number in range(12)]) == [row(number) for number in range(12)]
    again.close()
    size = sum(file.stat().st_size for file in folder.iterdir())
    filled(folder, range(12)).close()
    assert sum(file.stat().st_size for file in folder.iterdir()) == size


KILLED = """
import os, sys
from tests.unit.model.test_feature_shards import DESCRIBED, key, row
from vlmrun.model.feature_shards import FeatureShards
from pathlib import Path
shards = FeatureShards(Path(sys.argv[1]))
for number in range(50):
    shards.add(key(number), row(number), DESCRIBED)
os.write(shards._own[2], b"half a row")
os._exit(9)
"""


def test_a_killed_process_leaves_whole_rows(tmp_path):
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    shards = FeatureShards(tmp_path)
    assert shards.all([key(number) for number in range(50)]) == [row(number) for number in range(50)]


def test_a_full_disk_ends_the_keeping_only(tmp_path, monkeypatch, caplog):
    shards = filled(tmp_path, [1])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 100, "free": 1})())
    for number in (2, 3):
        shards.add(key(number), row(number), DESCRIBED)
    assert (shards.get(key(1)), shards.get(key(2))) == (row(1), None)
    assert caplog.text.count("no more features are kept") == 1


def test_more_files_than_may_be_open_and_files_that_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmrun.model.feature_shards._MOST_OPEN", 3)
    for number in range(8):
        filled(tmp_path, [number]).close()
    shards = FeatureShards(tmp_path)
    for _ in range(2):
        assert shards.all([key(number) for number in range(8)]) == [row(number) for number in range(8)]
        assert len(shards._open) == 3
    monkeypatch.setattr("pathlib.Path.glob", lambda folder, pattern: [folder / "gone.keys"])
    assert shards.all([key(9)]) == [None]
    shards.close()
