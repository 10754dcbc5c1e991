"""Training that ends when evaluations no longer gain, and evaluations by epoch, by share and before training."""

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import execute, losses, rows, said, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import HELD_OUT, _stopped_at, finish, job_with, scores
from vlmrun.train.scores import Record

pytestmark = pytest.mark.ranks

ASKED = HELD_OUT | {"steps": 1, "generate": 0, "patience": 2}
# A rate that is far too high: what is held out soon gets worse.
WILD = {"eval": ASKED, "engine": "plain", "lr": 0.5, "connector_lr": 0.2, "schedule": "constant", "max_steps": 12}


def _ends_at(by_step):
    """The step after two evaluations in a row that are no better than the best before them."""
    best, missed = float("inf"), 0
    for step, loss in by_step.items():
        missed = 0 if loss < best else missed + 1
        best = min(best, loss)
        if missed == 2:
            return step
    raise AssertionError(by_step)


def test_training_ends_with_patience_and_resumes_to_the_same_bits(tmp_path):
    whole = job_with(tmp_path, "whole", **WILD | {"eval": ASKED | {"patience": None}})
    finish(whole)
    expected = _ends_at({row["step"]: row["loss"] for row in scores(whole)})
    assert expected < 12
    job = job_with(tmp_path, "early", keep_best="loss", **WILD)
    summary = finish(job)
    assert summary["steps"] == expected
    assert summary["stopped_early"] is True
    assert summary["best_step"] == expected - 2
    assert losses(job) == losses(whole)[:expected]
    assert f"stopped at step {expected} of 12: 2 evaluation(s) in a row did not improve the held-out loss" in said(job)

    again = job_with(tmp_path, "again", keep_best="loss", **WILD)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 1, again.to_json(), expected - 1, group=False)
    finish(again)
    assert (rows(again), scores(again), weights(again)) == (rows(job), scores(job), weights(job))
    finish(again)  # killed between its last checkpoint and its result: nothing is left to train
    assert (rows(again), weights(again)) == (rows(job), weights(job))


def test_training_ends_below_a_loss_on_the_first_records_and_resumes_to_the_same_bits(tmp_path):
    by_heart = {"max_samples": 4, "lr": 0.02, "connector_lr": 0.02, "schedule": "constant", "engine": "plain"}
    by_heart |= {"epochs": None, "max_steps": 20}
    whole = job_with(tmp_path, "whole", **by_heart)
    assert "stopped_early" not in finish(whole)
    found = losses(whole)
    least = sorted(found)[len(found) // 2]
    expected = 1 + next(step for step, loss in enumerate(found) if loss < least)
    job = job_with(tmp_path, "early", until_loss=least, **by_heart)
    summary = finish(job)
    assert (summary["steps"], summary["stopped_early"]) == (expected, True)
    assert f"stopped at step {expected} of 20: the loss is below {least:g} (until_loss)" in said(job)
    assert rows(job)[-1]["epoch"] == expected  # a step is a pass over the four records

    again = job_with(tmp_path, "again", until_loss=least, **by_heart)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 1, again.to_json(), expected - 1, group=False)
    finish(again)
    assert (losses(again), weights(again)) == (losses(job), weights(job))
    finish(again)  # nothing is left to train: the last row's loss is known
    assert losses(again) == losses(job)


def test_the_model_of_until_loss_is_evaluated_whatever_steps_are_due(tmp_path):
    asked = HELD_OUT | {"steps": 50, "generate": 0}
    changes = {"lr": 0.02, "connector_lr": 0.02, "schedule": "constant", "engine": "plain", "eval": asked}
    job = job_with(tmp_path, "early", until_loss=1e6, **changes)
    summary = finish(job)
    assert [row["step"] for row in scores(job)] == [1]
    assert summary["eval_loss"] == scores(job)[0]["loss"]

    again = job_with(tmp_path, "again", until_loss=1e6, **changes)
    with pytest.raises(RankError, match="stopped at step"):  # before it is evaluated
        forked.run(_stopped_at, 1, again.to_json(), 1, group=False)
    assert not (again.path / "eval.jsonl").is_file()
    finish(again)
    assert scores(again) == scores(job)


def test_two_ranks_stop_together(tmp_path):
    changes = WILD | {"engine": "deepspeed", "zero": 2, "micro_batch": 1}
    job = job_with(tmp_path, "two", 2, **changes)
    found = forked.run(execute, 2, job.to_json())[0]
    assert found["steps"] < 12
    assert found["stopped_early"] is True


def test_evaluations_come_before_training_and_with_every_epoch(tmp_path):
    asked = HELD_OUT | {"steps": "epoch", "generate": 0, "at_start": True}
    job = job_with(tmp_path, "epochs", engine="plain", max_steps=None, epochs=2.0, eval=asked, save_steps=0.5)
    summary = finish(job)
    n = summary["steps"]
    assert [row["step"] for row in scores(job)] == [0, n // 2, n]
    assert sorted(path.name for path in (job.path / "checkpoints").iterdir()) == sorted([f"step-{n // 2}", f"step-{n}"])


@pytest.mark.parametrize(
    ("numbers", "least", "missed"),
    [
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 2.0, 2.0, 2.5], 0.0, 2),
        ([3.0, 2.9, 2.8], 0.5, 2),
        ([3.0, float("nan"), 2.0], 0.0, 0),
        ([3.0, float("nan")], 0.0, 1),
    ],
)
def test_patience_counts_evaluations_without_a_gain(tmp_path, numbers, least, missed):
    record = Record(tmp_path, 0)
    told = {"exact_match": None, "supervised_tokens": 1, "samples": 1, "seconds": 0.0}
    record._scores = [told | {"step": n, "loss": loss} for n, loss in enumerate([0.1, *numbers])]
    assert record.without_gain("loss", least) == missed
