"""`vlmrun data ledger`: what was trained on, what was lost, what is hardest."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.unit import made
from vlmrun.cli import app

ROWS = [
    {"data": "a", "record": 0, "id": "x", "used": 2, "tokens": 9, "supervised": 3, "losses": [2.0, 0.5], "mean": 1.25},
    {"data": "a", "record": 1, "id": "y", "used": 1, "tokens": 8, "supervised": 2, "losses": [3.0, 3.0], "mean": 3.0},
    {"data": "a", "record": 2, "id": "z", "used": 1, "tokens": 30, "supervised": 4, "truncated": True},
    {"data": "b", "record": 0, "id": "x", "used": 0},
    {"data": "b", "record": 1, "id": "w", "used": 0, "skipped": "no image 'w.png'"},
]


@pytest.fixture
def ledger(tmp_path, capsys):
    folder = made.train(tmp_path, "instruct", [1.0])

    def ask(*words, rows=ROWS):
        with gzip.open(folder / "ledger.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        code = app.main(["data", "ledger", "instruct", "--output", str(tmp_path), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def test_sums_by_data_entry(ledger):
    code, said, _ = ledger()
    lines = [line.split() for line in said.splitlines()]
    assert code == 0
    assert ["a", "3", "3", "4", "1", "0", "56", "12"] in lines
    assert ["all", "5", "3", "4", "1", "1", "56", "12"] in lines


def test_was_a_record_trained_on(ledger):
    code, said, _ = ledger("--record", "a/x")
    assert (code, said) == (0, "a[0] (id 'x'): used 2 times, 3 of 9 tokens supervised, loss 2, then 0.5\n")
    code, said, _ = ledger("--record", "w")
    assert code == 3
    assert "not used: no image 'w.png'" in said
    assert ledger("--record", "x")[0] == 3  # the one of b was not
    code, _, error = ledger("--record", "nobody")
    assert code == 3
    assert "no record 'nobody'" in error


def test_what_was_lost_and_why(ledger):
    _, said, _ = ledger("--lost")
    assert "its end was cut off" in said
    assert "training ended before its turn" in said
    _, said, _ = ledger("--lost", "--json")
    assert [json.loads(line)["id"] for line in said.splitlines()] == ["z", "x", "w"]
    assert ledger("--lost", rows=ROWS[:2])[1].startswith("nothing was lost")


def test_the_hardest(ledger):
    _, said, _ = ledger("--hardest", "1")
    assert [line.split()[:3] for line in said.splitlines()][1:] == [["a", "1", "y"]]
    code, _, error = ledger("--hardest", "1", rows=ROWS[2:])
    assert code == 2
    assert "record_losses=true" in error


def test_stages_without_a_ledger_and_damaged_ones(ledger, tmp_path):
    made.stage(tmp_path, "merge", "merge")
    assert app.main(["data", "ledger", "merge", "--output", str(tmp_path)]) == 4
    ledger()
    file = next(tmp_path.rglob("ledger.jsonl.gz"))
    file.write_bytes(file.read_bytes()[:-20])
    assert app.main(["data", "ledger", "instruct", "--output", str(tmp_path)]) == 4
