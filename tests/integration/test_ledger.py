"""The ledger of records: its sums are those of the metrics, whatever ranks, workers, rows and interruptions."""

from __future__ import annotations

import json
import math

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import losses, make_job, rows, run, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import _stopped_at, finish
from vlmrun.data import ledger_rows

pytestmark = pytest.mark.ranks

PLAIN = {"engine": "plain"}


def ledger_of(job):
    return list(ledger_rows.read(job.path / "ledger.jsonl.gz"))


def sums(job):
    """Samples, tokens and supervised tokens: of the ledger, and of the metrics."""
    found = ledger_of(job)
    counted = [sum(row["used"] * row.get(key, 0) for row in found) for key in ("tokens", "supervised")]
    told = rows(job)
    return [sum(row["used"] for row in found), *counted], [
        sum(row[key] for row in told) for key in ("samples", "tokens", "supervised_tokens")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": {"length": 64, "method": "best_fit", "window": 8}, "global_batch": 2, "micro_batch": 1},
        {"max_samples": 5, "epochs": 3.0, "workers": 2},
    ],
)
def test_the_sums_are_those_of_the_metrics(tmp_path, changes):
    job = run(tmp_path, "one", **PLAIN, **changes)
    of_ledger, of_metrics = sums(job)
    assert of_ledger == of_metrics
    assert not (job.path / "ledger").exists()


def test_two_ranks_and_a_stop_make_the_same_rows(tmp_path):
    whole = run(tmp_path, "whole", record_losses=True, **PLAIN)
    rounded = [round(loss, 6) for row in ledger_of(whole) for loss in row.get("losses", ())]
    assert rounded
    assert all(map(math.isfinite, rounded))

    two = run(tmp_path, "two", 2, record_losses=True, micro_batch=1, zero=2)
    plain = [{key: row[key] for key in row if key not in ("losses", "mean")} for row in ledger_of(whole)]
    assert [{key: row[key] for key in row if key not in ("losses", "mean")} for row in ledger_of(two)] == plain
    for one, other in zip(ledger_of(whole), ledger_of(two), strict=True):
        assert other.get("mean", 0.0) == pytest.approx(one.get("mean", 0.0), abs=1e-4)

    again = make_job(tmp_path, "again", max_steps=6, record_losses=True, save_steps=2, **PLAIN)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 1, again.to_json(), 3, group=False)
    finish(again)
    assert ledger_of(again) == ledger_of(whole)
    finish(again)  # once more, after it is finished
    assert ledger_of(again) == ledger_of(whole)


def test_an_interruption_of_two_ranks_changes_no_byte(tmp_path):
    changes = {"record_losses": True, "micro_batch": 1, "zero": 2, "max_samples": 5, "epochs": 6.0, "save_steps": 2}
    whole = make_job(tmp_path, "whole", ranks_per_node=2, **changes)
    finish(whole, 2)
    again = make_job(tmp_path, "again", ranks_per_node=2, **changes)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 2, again.to_json(), 3)
    finish(again, 2)
    first, second = ((job.path / "ledger.jsonl.gz").read_bytes() for job in (whole, again))
    assert first == second
    assert any(row["used"] > 2 for row in ledger_of(whole))


def test_losses_of_records_change_nothing_and_their_mean_is_the_steps_loss(tmp_path):
    silent = run(tmp_path, "silent", **PLAIN)
    for kind in ("chunked", "plain"):
        job = run(tmp_path, kind, record_losses=True, loss_head=kind, max_samples=4, **PLAIN)
        found = ledger_of(job)
        total = sum(row["losses"][0] * row["supervised"] for row in found)
        # The first step sees each of the four once.
        assert total / sum(row["supervised"] for row in found) == pytest.approx(losses(job)[0], abs=1e-5)
    loud = run(tmp_path, "loud", record_losses=True, **PLAIN)
    assert (losses(loud), weights(loud)) == (losses(silent), weights(silent))
    assert "losses" not in ledger_of(silent)[0]


def test_records_that_cannot_be_used_have_a_row_with_the_reason(tmp_path):
    job = make_job(tmp_path, "skips", max_steps=3, on_error="skip", **PLAIN)
    file = tmp_path / "data.json"
    path = file if file.is_file() else next(tmp_path.rglob("data.json"))
    records = json.loads(path.read_text())
    records.insert(1, {"id": "bad", "image": "missing.png", "conversations": records[0]["conversations"]})
    path.write_text(json.dumps(records))
    finish(job)
    bad = [row for row in ledger_of(job) if "skipped" in row]
    assert [(row["id"], row["record"], row["used"]) for row in bad] == [("bad", 1, 0)]
    assert "missing.png" in bad[0]["skipped"]
    of_ledger, of_metrics = sums(job)
    assert of_ledger == of_metrics
