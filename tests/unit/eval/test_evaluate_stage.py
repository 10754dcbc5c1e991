import json

import pytest
import torch

from tests.integration.jobs import HARDWARE
from vlmrun.config.job import StageJob
from vlmrun.config.schema import DataConfig, EvaluateStage, HardwareConfig
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import ConfigError, DataError, LaunchError
from vlmrun.stages import evaluate
from vlmrun.weights import native
from vlmrun.weights.reader import DTYPES


@pytest.fixture(scope="session")
def model(tmp_path_factory, loaded):
    folder = tmp_path_factory.mktemp("artifact")
    native.save(folder / "weights", loaded, template=TEMPLATES["micro"].to_dict(), image_aspect="square", tensors={})
    return folder


@pytest.fixture
def make_job(tmp_path, questions, model, loaded):
    def make(*, on_error="fail", data=None, hardware=None, **changes):
        stage = {
            "kind": "evaluate",
            "init_from": "instruct",
            "data": ["test"],
            "template": None,
            "image_aspect": "square",
            "max_new_tokens": 4,
            "batch": 4,
            "max_samples": None,
            "shuffle_control": True,
            "seed": 0,
        }
        entry = {
            "format": "vqa",
            "split": None,
            "fields": None,
            "annotations": str(questions),
            "images": str(questions.parent / "images"),
            "on_error": on_error,
            "prepare": None,
            "about": None,
        }
        (tmp_path / "stage").mkdir(exist_ok=True)
        return StageJob(
            name="eval",
            key="k",
            run="r",
            folder=str(tmp_path / "stage"),
            stage=EvaluateStage.model_validate(stage | changes),
            model=loaded.model,
            data={"test": DataConfig.model_validate(entry | (data or {}))},
            parents={"instruct": str(model)},
            prepared=[],
            hardware=HardwareConfig.model_validate(HARDWARE | (hardware or {})),
        )

    return make


def test_answers_and_scores(make_job):
    job = make_job()
    result = evaluate.execute(job)
    assert set(result.summary) == {"accuracy", "accuracy_unseen", "chance", "shuffled", "n_questions", "seconds"}
    assert result.summary["n_questions"] == 10
    assert result.summary["chance"] == 1.0  # every expected answer of the fixture is the same
    assert result.roots == ("answers.jsonl", "answers_shuffled.jsonl", "scores.json")
    scores = json.loads((job.path / "scores.json").read_text())
    assert scores["seen"]["n_questions"] == 8
    assert scores["unseen"]["n_questions"] == 2
    assert result.summary["shuffled"] == scores["seen"]["shuffled"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_is_asked_in_the_precision_of_the_run(make_job, model, precision):
    job = make_job(hardware={"precision": precision})
    asker = evaluate.asker_of(job, model)
    assert {parameter.dtype for parameter in asker.vlm.parameters()} == {DTYPES[precision]}
    assert evaluate.execute(job).summary["n_questions"] == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_told(make_job):
    with pytest.raises(LaunchError, match="no GPU is visible here"):
        evaluate.execute(make_job(hardware={"gpu": "a100_80g"}))


def test_a_right_answer_counts(make_job, questions):
    job = make_job()
    evaluate.execute(job)
    answers = [json.loads(line) for line in (job.path / "answers.jsonl").read_text("utf-8").splitlines()]
    truth = {row["question_id"]: row["answer"].upper() or "nothing" for row in answers}
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps(line | {"answer": truth[line["question_id"]]}) + "\n" for line in lines))
    for path in job.path.iterdir():
        path.unlink()
    summary = evaluate.execute(job).summary
    n_empty = sum(row["answer"] == "" for row in answers)
    assert n_empty == 0
    assert summary["accuracy"] == summary["accuracy_unseen"] == 1.0
    assert summary["shuffled"] < 1.0  # other pictures, other answers


def test_repeated_evaluation_writes_the_same(make_job):
    job = make_job()
    evaluate.execute(job)
    first = {path.name: path.read_bytes() for path in job.path.iterdir()}
    evaluate.execute(job)
    assert {path.name: path.read_bytes() for path in job.path.iterdir()} == first


def test_a_choice_of_questions(make_job):
    job = make_job(max_samples=4, shuffle_control=False)
    result = evaluate.execute(job)
    assert result.summary["n_questions"] == 4
    assert result.summary["shuffled"] is None
    assert result.roots == ("answers.jsonl", "scores.json")
    first = (job.path / "answers.jsonl").read_bytes()
    for path in job.path.iterdir():
        path.unlink()
    evaluate.execute(job)
    assert (job.path / "answers.jsonl").read_bytes() == first


def test_bad_questions(make_job, questions):
    questions.write_text(questions.read_text() + '{"question_id": "bad"}\n')
    with pytest.raises(DataError, match="'text' is missing"):
        evaluate.execute(make_job())
    job = make_job(on_error="skip")
    result = evaluate.execute(job)
    assert result.summary["n_questions"] == 10
    assert "skipped.jsonl" in result.roots
    assert json.loads((job.path / "skipped.jsonl").read_text())["id"] == "bad"


def test_data_without_questions(make_job, tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": turns}]))
    with pytest.raises(ConfigError, match="format 'llava' has no questions"):
        evaluate.execute(
            make_job(data={"format": "llava", "split": None, "fields": None, "annotations": str(tmp_path / "d.json")})
        )
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(DataError, match="no question in the data"):
        evaluate.execute(make_job(data={"annotations": str(tmp_path / "q.jsonl")}))


def test_other_ranks_do_nothing(make_job, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    job = make_job()
    assert evaluate.execute(job) is None
    assert list(job.path.iterdir()) == []


@pytest.mark.parametrize(
    ("saved", "asked", "used"), [("pad", None, "pad"), ("square", None, "square"), ("pad", "square", "square")]
)
def test_a_model_is_asked_with_the_preprocessing_it_was_trained_with(make_job, model, monkeypatch, saved, asked, used):
    job = make_job(image_aspect=asked, max_samples=1, shuffle_control=False)
    description = evaluate.describe(model)
    monkeypatch.setattr(evaluate, "describe", lambda folder: description | {"image_aspect": saved})
    seen = []
    encoder = evaluate.Encoder
    monkeypatch.setattr(evaluate, "Encoder", lambda **values: seen.append(values["aspect"]) or encoder(**values))
    evaluate.execute(job)
    assert seen == [used]


def test_missing_pictures_are_told_before_the_model_is_loaded(make_job, questions, monkeypatch):
    for name in ("2.png", "5.png"):
        (questions.parent / "images" / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
        with pytest.raises(DataError) as error:
            evaluate.execute(make_job())
    assert [problem.where.split("[")[-1] for problem in error.value.problems] == ["2] (id 'q2')", "5] (id 'q5')"]
    job = make_job(on_error="skip", shuffle_control=False)
    assert evaluate.execute(job).summary["n_questions"] == 8
    listed = [json.loads(line)["id"] for line in (job.path / "skipped.jsonl").read_text().splitlines()]
    assert listed == ["q2", "q5"]
