"""The notes of a ledger: what a full disk, a kill at a bad moment or a lost file leaves, and what is made of it."""

from __future__ import annotations

import json
import os
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.jobs import make_job
from vlmrun.data import ledger as rows
from vlmrun.data import ledger_rows
from vlmrun.data.collate import Use
from vlmrun.train import dist, ledger, setup


class Data:
    """Three records."""

    def __len__(self):
        return 3

    def sample_id(self, number):
        return f"id{number}"

    def name(self, number):
        return "shapes"

    def place(self, number):
        return number


class Full:
    """A file on a full disk."""

    def __init__(self, inner):
        self.asked, self.close = 0, inner.close

    def write(self, _):
        self.asked += 1
        raise OSError(28, "No space left on device")


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path, "noted", max_steps=4)


def note(made, *steps):
    for step in steps:
        made.add(step, [Use(step % 3, 9, 3, False, False), Use((step + 1) % 3, 8, 2, False, False)], None)


def used(job):
    return {row["id"]: row["used"] for row in ledger_rows.read(job.path / "ledger.jsonl.gz")}


def opened(job, done=0):
    made = ledger.Ledger(job)
    made.open(done)
    return made


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def left(job):
    return sorted(path.name for path in job.path.glob("ledger*"))


def test_notes_of_an_interrupted_training_are_summed(job):
    first = opened(job)
    note(first, 1, 2, 3)
    first.close()
    second = opened(job, 2)  # step 3 is repeated
    note(second, 3, 4)
    second.close()
    second.finish(Data(), 4)
    assert used(job) == {"id0": 2, "id1": 3, "id2": 3}
    assert left(job) == ["ledger.jsonl.gz"]


def test_a_full_disk_is_told_once_and_ends_the_notes_and_not_the_training(job, caplog):
    made = opened(job)
    note(made, 1)
    made._handle = full = Full(made._handle)
    note(made, 2, 3, 4)
    assert full.asked == 1
    (said,) = warnings(caplog)
    assert "No space left on device" in said
    made.sync()
    made.close()
    made.finish(Data(), 4)
    assert left(job) == []
    assert "notes of step 2 are missing" in warnings(caplog)[-1]


def test_a_folder_that_cannot_be_made_is_told(job, caplog):
    job.path.mkdir(parents=True, exist_ok=True)
    (job.path / "ledger").write_text("a file")
    made = opened(job)
    note(made, 1)
    made.close()
    made.finish(Data(), 1)
    assert len(warnings(caplog)) == 1
    assert "ledger.jsonl.gz" not in left(job)


def test_a_ledger_that_cannot_be_written_fails_no_finished_training(job, caplog, monkeypatch):
    made = opened(job)
    note(made, 1)
    made.close()
    monkeypatch.setattr(rows, "write", lambda *_: {}["gone"])
    made.finish(Data(), 1)
    assert left(job) == []
    assert len(warnings(caplog)) == 1


def test_killed_while_the_notes_are_cut_no_step_counts_twice(job, tmp_path):
    made = opened(job)
    note(made, 1, 2, 3)
    made.close()
    notes = job.path / "ledger" / "rank-0.uses"
    shutil.copy(notes, tmp_path / "kept")
    opened(job, 2).close()
    shutil.copy(tmp_path / "kept", notes)  # as before it was removed
    again = opened(job, 2)
    note(again, 3, 4)
    again.close()
    again.finish(Data(), 4)
    assert used(job) == {"id0": 2, "id1": 3, "id2": 3}


def test_killed_while_the_notes_are_removed_the_ledger_stays(job):
    made = opened(job)
    note(made, 1, 2)
    made.close()
    made.finish(Data(), 2)
    before = (job.path / "ledger.jsonl.gz").read_bytes()
    (job.path / "ledger").mkdir()
    (job.path / "ledger" / "rank-1.uses").write_bytes(b"")
    again = opened(job, 2)
    assert again._handle is None
    again.finish(Data(), 2)
    assert (job.path / "ledger.jsonl.gz").read_bytes() == before
    assert left(job) == ["ledger.jsonl.gz"]


@pytest.mark.parametrize("lost", ["all", "the last step", "a rank"])
def test_a_gap_in_the_notes_is_told_and_there_is_no_ledger(job, caplog, lost):
    made = opened(job)
    note(made, 1, 2)
    made.close()
    if lost == "all":
        shutil.rmtree(job.path / "ledger")
    if lost == "the last step":
        file = job.path / "ledger" / "rank-0.uses"
        file.write_bytes(file.read_bytes()[: 2 * rows.USE.itemsize + 5])
    if lost == "a rank":
        row = {"epoch": 1.0, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "supervised_tokens": 9, "tokens": 9}
        lines = [json.dumps({"step": step, "samples": 4, "seconds": 0.1, **row}) for step in (1, 2)]
        (job.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    again = opened(job, 2)
    note(again, 3)
    again.close()
    again.finish(Data(), 3)
    (said,) = warnings(caplog)
    assert "are missing" in said
    assert left(job) == []


@pytest.mark.parametrize("decided", [True, False])
def test_rank_0_decides_for_all_whether_there_is_something_to_note(job, monkeypatch, decided):
    """A rank that looked by itself could see the file early or late, and wait for the others alone."""
    (job.path / "ledger").mkdir(parents=True)
    if decided:
        (job.path / "ledger.jsonl.gz").write_bytes(b"")
    monkeypatch.setattr(dist, "is_main", lambda: False)
    monkeypatch.setattr(dist, "broadcast_object", lambda value: decided)
    made = opened(job)
    assert (made._handle is not None) == decided
    made.close()


def test_notes_are_synced_before_a_checkpoint_is_written(job, monkeypatch, tmp_path):
    synced, order = [], []
    made = opened(job)
    number = made._handle.fileno()
    monkeypatch.setattr(os, "fsync", synced.append)
    run = SimpleNamespace(
        ledger=SimpleNamespace(sync=lambda: (made.sync(), order.append("notes"))),
        engine=SimpleNamespace(save=lambda folder: order.append("weights")),
        ema=None,
    )
    setup._Run._write(run, tmp_path)
    assert (synced, order) == ([number], ["notes", "weights"])
    made.close()


one = st.tuples(
    st.integers(1, 4), st.integers(0, 2), st.just(9), st.integers(2, 3), st.booleans(), st.booleans(),
    st.floats(0, 30, width=32) | st.just(float("nan")),
)  # fmt: skip


@given(st.lists(one, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_the_notes_changes_no_bit(notes, chance: random.Random):
    shuffled = list(notes)
    chance.shuffle(shuffled)
    sums = []
    for listed in (notes, shuffled):
        found = rows.Sums(3)
        for start in range(0, len(listed), 7):
            found.add(np.array(listed[start : start + 7], dtype=rows.USE))
        sums.append(found)
    for name in ("used", "tokens", "supervised", "truncated", "skipped", "losses", "_total"):
        assert getattr(sums[0], name).tobytes() == getattr(sums[1], name).tobytes(), name


def test_reasons_are_read_whatever_is_in_an_id_and_torn_ones_are_passed_over(job, caplog):
    job.path.mkdir(parents=True, exist_ok=True)
    row = {"id": "a\u2028b\u0085c", "source": "file", "index": 7, "reason": "no image"}
    text = json.dumps(row, ensure_ascii=False)
    skipped = job.path / "skipped.jsonl"
    skipped.write_text(f"{text}\n{text[:9]}", "utf-8")
    rows.write(job.path / "ledger.jsonl.gz", rows.Sums(3), Data(), skipped, {"file": "shapes"})
    last = list(ledger_rows.read(job.path / "ledger.jsonl.gz"))[-1]
    assert (last["id"], last["record"], last["skipped"]) == (row["id"], 7, "no image")
    assert len(warnings(caplog)) == 1
