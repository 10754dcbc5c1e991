"""Benchmarks asked during training: scored as an evaluate stage scores them, the same on any ranks, and chosen by."""

import base64
import json

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import COLOURS, said, weights
from tests.integration.ranks import RankError
from tests.integration.test_held_out import HELD_OUT, _stopped_at, finish, job_with, scores
from vlmrun.eval import benchmarks

pytestmark = pytest.mark.ranks

ASKED = HELD_OUT | {"steps": 1, "data": ["colours"], "max_samples": None, "generate": 0}
LEARNS = {"tune": {"llm": "full", "tower": "freeze", "connector": "full"}, "lora": None, "lr": 0.02, "max_steps": 6,
          "connector_lr": 0.02, "schedule": "constant"}  # fmt: skip


def colours(folder, *, inline=False):
    """A set of nine questions about the held-out pictures."""
    rows = []
    for number in range(9):
        image = f"{number}.png"
        file = folder / "held" / "images" / image
        if not file.is_file():
            continue
        held = base64.b64encode(file.read_bytes()).decode() if inline else image
        rows.append(
            {"question_id": number, "image": held, "text": "Which colour?", "answer": list(COLOURS)[number % 4]}
        )
    path = folder / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config = folder / "colours.yaml"
    config.write_text(
        f"annotations: {path}\nimages: {folder / 'held' / 'images'}\nmetric: contains\n"
        "generation: {max_new_tokens: 4}\n"
    )
    return benchmarks.load(str(config))[1]


def watched(folder, name, n=1, *, inline=False, **changes):
    job = job_with(folder, name, n, **{"eval": ASKED, **LEARNS, **changes})
    return job.model_copy(update={"data": {**job.data, "colours": colours(folder, inline=inline)}})


def by_step(job):
    return {row["step"]: row["benchmarks"]["colours"] for row in scores(job)}


def test_the_best_model_by_a_benchmark_is_the_result(tmp_path):
    job = watched(tmp_path, "best", engine="plain", keep_best="colours", save_total_limit=1)
    summary = finish(job)
    found = by_step(job)
    assert len(set(found.values())) > 1, "another model has another score"
    best = min(step for step in found if found[step] == max(found.values()))
    assert summary["best_step"] == best < 6
    assert summary["eval_colours"] == found[best]
    assert summary["eval_loss"] is None
    assert "colours 0." in said(job)

    stopped = watched(tmp_path, "stopped", engine="plain", keep_best="colours", save_total_limit=1)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 1, stopped.to_json(), best + 1, group=False)
    finish(stopped)
    assert (scores(stopped), weights(stopped)) == (scores(job), weights(job))


def _evaluated(text):
    """The score of a job's finished model, as an evaluate stage finds it."""
    from vlmrun.config.job import StageJob
    from vlmrun.config.schema import EvaluateStage
    from vlmrun.stages import evaluate

    job = StageJob.model_validate(json.loads(text))
    stage = EvaluateStage(
        kind="evaluate", init_from="it", data=["colours"], template=None, image_aspect=None, max_new_tokens=4, batch=4,
        max_samples=None, shuffle_control=False, seed=0,
    )  # fmt: skip
    folder = job.path.parent / "evaluate"
    folder.mkdir()
    asked = job.model_copy(update={"folder": str(folder), "stage": stage, "parents": {"it": str(job.path)}})
    evaluate.execute(asked)
    return json.loads((folder / "scores.json").read_text())["benchmarks"]["colours"]["value"]


@pytest.mark.parametrize("inline", [False, True], ids=["files", "base64"])
def test_the_last_score_is_that_of_an_evaluate_stage(tmp_path, inline):
    job = watched(tmp_path, "it", engine="plain", inline=inline, eval=ASKED | {"steps": 6})
    summary = finish(job)
    (found,) = forked.run(_evaluated, 1, job.to_json(), group=False)
    assert 0 < found == summary["eval_colours"]


WAYS = {
    "ZeRO-3": {"zero": 3, "micro_batch": 1},
    "FSDP2": {"engine": "fsdp", "zero": 3, "micro_batch": 1},
    "shared layers": {"zero": 2, "tensor_parallel": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_ranks_share_the_questions_and_nothing_changes_in_the_training(tmp_path, way):
    changes = {"max_steps": 3, **WAYS[way]}
    asked = ASKED | {"data": ["held", "colours"]}
    without = watched(tmp_path, "without", 2, **changes, eval=None)
    finish(without, 2)
    with_it = watched(tmp_path, "with", 2, **changes, eval=asked)
    finish(with_it, 2)
    assert weights(with_it) == weights(without)
    alone = watched(tmp_path, "alone", engine="plain", max_steps=3, eval=asked)
    finish(alone)
    assert by_step(with_it) == pytest.approx(by_step(alone), abs=0.13), "a near tie may fall otherwise"
    assert all(row["loss"] is not None for row in scores(with_it))


def test_pictures_that_cannot_be_used_are_found_before_the_first_step(tmp_path):
    job = watched(tmp_path, "bad", engine="plain")
    (tmp_path / "held" / "images" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    with pytest.raises(RankError, match="DataError"):
        finish(job)
    assert not (job.path / "metrics.jsonl").exists() or not (job.path / "metrics.jsonl").read_text()
    lenient = job.data["colours"].model_copy(update={"on_error": "skip"})
    job = job.model_copy(update={"data": {**job.data, "colours": lenient}})
    assert finish(job)["eval_colours"] is not None


def skipped(job):
    return [json.loads(line) for line in (job.path / "skipped.jsonl").read_text("utf-8").splitlines()]


def lenient(job):
    data = job.data["colours"].model_copy(update={"on_error": "skip"})
    return job.model_copy(update={"data": {**job.data, "colours": data}})


def test_questions_left_out_are_counted_and_listed_once(tmp_path):
    job = lenient(watched(tmp_path, "lenient", 2, zero=2, micro_batch=1, max_steps=2))
    images = tmp_path / "held" / "images"
    (images / "2.png").unlink()
    (images / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    assert finish(job, 2)["eval_colours"] is not None
    assert [row["id"] for row in skipped(job)] == ["2", "3"]
    assert all(row["reason"] and row["source"].endswith("colours.jsonl") for row in skipped(job))
    assert "left out 1 of 8 questions of colours" in said(job)
    assert "left out 1 of 7 questions of benchmarks" in said(job)


def test_a_set_without_a_question_that_can_be_asked_is_an_error_at_the_start(tmp_path):
    job = lenient(watched(tmp_path, "none", engine="plain", keep_best="colours"))
    for file in (tmp_path / "held" / "images").iterdir():
        file.unlink()
    with pytest.raises(RankError, match="no question of colours can be asked"):
        finish(job)
    assert len(skipped(job)) == 8


def _usable(skip):
    """What each rank makes of four batches whose second holds a question that cannot be asked."""
    from types import SimpleNamespace

    from vlmrun import heartbeat
    from vlmrun.errors import DataError
    from vlmrun.train.benchmarks import Ask, Questions

    class Some(Questions):
        def item(self, place, prompts):
            if place == 1:
                raise DataError("no image", "here", "none")

    asked = SimpleNamespace(id="q", source=("f", 1))
    beats, listed = [], []
    heartbeat.beat = lambda phase, step=None: beats.append(phase)
    questions = Some([Ask("it", asked, None, 1, skip)] * 4, [[0], [1], [2], [3]], lambda texts: {}, ["it"])
    try:
        found = questions.usable(None, listed.extend)
    except DataError as error:
        return str(error)
    return found, beats, len(listed)


def test_every_rank_knows_of_a_question_that_cannot_be_asked():
    first, second = forked.run(_usable, 2, False)
    assert first == second
    assert "no image" in first
    kept = [[0], [2], [3]]
    assert forked.run(_usable, 2, True) == [(kept, ["load"] * 2, 1), (kept, ["load"] * 2, 0)]


def _undefined(text, *steps):
    """Trains with a set whose score is not defined at some steps."""
    from tests.integration.jobs import execute
    from vlmrun.train.held_out import Evaluator

    scored, evaluate = Evaluator._scores, Evaluator.evaluate
    at = []

    def noted(self, step):
        at.append(step)
        return evaluate(self, step)

    Evaluator.evaluate = noted
    Evaluator._scores = lambda self: {"colours": None} if at[-1] in steps else scored(self)
    return execute(text)


def test_a_score_that_is_not_defined_is_warned_of_and_is_never_the_best(tmp_path):
    usual = watched(tmp_path, "usual", engine="plain", keep_best="colours")
    best = finish(usual)["best_step"]
    job = watched(tmp_path, "undefined", engine="plain", keep_best="colours")
    (summary,) = forked.run(_undefined, 1, job.to_json(), best, group=False)
    assert summary["best_step"] not in (None, best)
    assert f"step {best} has no score of colours" in said(job)
    assert said(job).count("has no score of colours") == 1
    assert f"step {best}: colours not defined" in said(job)


def test_without_any_score_there_is_no_best_model_and_an_error(tmp_path):
    asked = ASKED | {"patience": 2}
    job = watched(tmp_path, "never", engine="plain", keep_best="colours", max_steps=3, eval=asked)
    with pytest.raises(RankError, match="no evaluation gave a score of colours to choose the best model by"):
        forked.run(_undefined, 1, job.to_json(), 1, 2, 3, group=False)
    assert said(job).count("has no score of colours") == 3
    assert (job.path / "checkpoints").is_dir()
    assert not (job.path / "weights").exists()
