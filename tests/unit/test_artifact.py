"""Files are there whole or not at all."""

import pytest

from vlmrun import artifact
from vlmrun.errors import DataError, Problem, error_from_dict, suggest


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    artifact.write_text(path, "old")

    def fail():
        with artifact.writing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_written_file_is_readable_by_others(tmp_path):
    artifact.write_text(tmp_path / "a.txt", "x")
    assert oct((tmp_path / "a.txt").stat().st_mode & 0o777) == "0o644"


def test_files_are_described_by_path_size_and_digest(tmp_path):
    (tmp_path / "weights" / "llm").mkdir(parents=True)
    (tmp_path / "weights" / "llm" / "a.bin").write_bytes(b"abc")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    (tmp_path / "not_a_root").write_bytes(b"x")
    found = artifact.describe_files(tmp_path, ("weights", "metrics.jsonl"))
    assert list(found) == ["weights/llm/a.bin", "metrics.jsonl"]
    assert found["weights/llm/a.bin"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_error_survives_the_way_to_its_parent():
    error = error_from_dict(DataError([Problem("a", "b", "c"), Problem("d")]).to_dict())
    assert isinstance(error, DataError)
    assert str(error) == "error: a\n  at:  b\n  fix: c\nerror: d"


def test_suggestions_name_the_nearest_and_all():
    assert suggest("instuct", ["instruct", "lora"], noun="stages") == "did you mean 'instruct'? stages: instruct, lora"
    assert suggest("xyz", ["instruct"]) == "options: instruct"
    assert suggest("xyz", []) == "there are no options"
