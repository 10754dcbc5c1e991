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
