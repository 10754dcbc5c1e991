"""Lines of our own files end with a newline, and with nothing else that Python takes for the end of a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun import jsonl
from vlmrun.data.reading import list_skipped
from vlmrun.report import answers
from vlmrun.run import replay
from vlmrun.serve import chat
from vlmrun.train import samples, scores

ODD = "a\u2028b\u2029c\u0085d\x1ce"


def write(path, *values):
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return path


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(ODD)), max_size=5))
def test_what_is_written_is_read(texts):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        values = [{"id": text} for text in texts]
        assert list(jsonl.rows(write(Path(folder) / "rows.jsonl", *values))) == values


def test_torn_rows_are_passed_over_and_named_once_and_a_lost_file_is_empty(tmp_path, caplog):
    path = write(tmp_path / "rows.jsonl", {"a": 1}, {"a": 2})
    path.write_bytes(path.read_bytes() + b'{"a": "\xc3')
    for _ in range(2):
        assert list(jsonl.rows(path)) == [{"a": 1}, {"a": 2}]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "row 3" in said
    assert list(jsonl.rows(tmp_path / "absent.jsonl")) == jsonl.lines(tmp_path / "absent.jsonl") == []


def test_records_left_out_are_listed_once_and_counted(tmp_path):
    path = tmp_path / "skipped.jsonl"
    for _ in range(2):
        list_skipped(path, [{"id": ODD, "reason": "x"}, {"id": "b", "reason": "x"}])
    fake = type("Made", (), {"job": type("Job", (), {"path": tmp_path})})
    assert samples.Samples.n_skipped(fake) == 2
    path.write_bytes(path.read_bytes()[:-5])  # torn by a kill
    list_skipped(path, [{"id": "b", "reason": "x"}])
    assert [row["id"] for row in jsonl.rows(path)] == [ODD, "b"]


@pytest.mark.parametrize("read", [scores.read, replay._rows, jsonl.rows])
def test_everyone_who_reads_rows_takes_them_as_they_are(tmp_path, read):
    assert list(read(write(tmp_path / "rows.jsonl", {"answer": ODD}))) == [{"answer": ODD}]


def test_answers_and_questions_too(tmp_path):
    row = {"data": "d", "text": "t", "expected": "x", "answer": ODD, "category": "c", "split": "s", "id": 1}
    write(tmp_path / "answers.jsonl", row)
    ((shown,), total) = answers.show(tmp_path, 5)
    assert (shown.answer, total) == (ODD, 1)
    asked = write(tmp_path / "asked.jsonl", {"question": ODD})
    assert [one["question"] for one in chat._questions(asked)] == [ODD]
