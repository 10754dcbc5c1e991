import base64
import json
import shutil

import pytest
import torch

from tests.integration import ranks as forked
from vlmrun import artifact
from vlmrun.artifact import Artifact
from vlmrun.cli.app import main
from vlmrun.config.job import StageJob
from vlmrun.errors import ConfigError, DataError, LaunchError
from vlmrun.eval import benchmarks
from vlmrun.stages import evaluate
from vlmrun.weights.reader import DTYPES


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


def of_ranks(text):
    """What a rank's execution gives, for `ranks.run`."""
    job = StageJob.model_validate_json(text)
    result = evaluate.execute(job)
    return None if result is None else result.summary["n_questions"]


@pytest.mark.ranks
def test_two_ranks_write_what_one_writes(make_job):
    job = make_job()
    evaluate.execute(job)
    alone = {path.name: path.read_bytes() for path in job.path.iterdir()}
    for path in job.path.iterdir():
        path.unlink()
    shared = make_job(hardware={"ranks_per_node": 2, "launcher": "torchrun"})
    assert forked.run(of_ranks, 2, shared.to_json()) == [10, None]
    assert {path.name: path.read_bytes() for path in job.path.iterdir()} == alone


@pytest.fixture
def benchmark_of(make_job, questions, tmp_path):
    """A job that answers a benchmark: the fixture's questions with other values."""

    def make(**changes):
        lines = ["annotations: " + str(questions), "images: " + str(questions.parent / "images"), "metric: exact"]
        (tmp_path / "own.yaml").write_text("\n".join(lines))
        given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        _, config = benchmarks.load(str(tmp_path / "own.yaml"), ["generation.max_new_tokens=4", *given])
        job = make_job(shuffle_control=True)
        return job.model_copy(update={"data": {"test": config}})

    return make


def test_a_benchmark_has_a_card_marks_and_upstreams_layout(benchmark_of):
    job = benchmark_of(blind_control="true")
    result = evaluate.execute(job)
    card = json.loads((job.path / "scores.json").read_text())["benchmarks"]["test"]
    assert result.summary["test"] == card["value"]
    assert card["protocol"]["template"] == "micro"
    assert card["shuffled"] is not None
    assert card["blind"] is not None
    answers = [json.loads(line) for line in (job.path / "answers.jsonl").read_text("utf-8").splitlines()]
    marks = [json.loads(line) for line in (job.path / "marks.jsonl").read_text().splitlines()]
    assert [mark["question_id"] for mark in marks] == [row["question_id"] for row in answers]
    assert all({"score", "read_as", "doubtful"} <= row.keys() for row in answers)
    upstream = [json.loads(line) for line in (job.path / "upstream" / "test.jsonl").read_text().splitlines()]
    assert list(upstream[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert [row["text"] for row in upstream] == [row["answer"] for row in answers]
    assert {"upstream", "marks.jsonl", "answers_blind.jsonl"} <= set(result.roots)


def test_what_evaluate_and_score_say_of_the_same_answers_is_equal(benchmark_of, capsys):
    job = benchmark_of()
    evaluate.execute(job)
    (job.path / "job.json").write_text(job.to_json())
    made = Artifact(
        name="eval", kind="evaluate", key="k", run="r", created=artifact.now(), parents=[], summary={}, environment={},
        files={},
    )  # fmt: skip
    artifact.write_text(job.path / artifact.NAME, made.model_dump_json())
    ours = json.loads((job.path / "scores.json").read_text())["benchmarks"]["test"]
    assert main(["score", str(job.path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["benchmarks"]["test"]
    assert again | {"shuffled": ours["shuffled"]} == ours


def answers_of(job):
    evaluate.execute(job)
    return [json.loads(line) for line in (job.path / "answers.jsonl").read_text("utf-8").splitlines()]


def test_drawn_answers_depend_on_the_seed_alone(benchmark_of):
    drawn = {"generation__temperature": 1.5, "generation__answers": 2}
    first = answers_of(benchmark_of(**drawn))
    assert len(first) == 20
    assert {row.get("draw", 0) for row in first} == {0, 1}
    job = benchmark_of(**drawn)
    for path in job.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    job = job.model_copy(update={"stage": job.stage.model_copy(update={"batch": 1})})
    assert answers_of(job) == first
    assert len({row["answer"] for row in first}) > 2


def test_beams_stops_and_a_second_pass_change_answers(benchmark_of):
    plain = answers_of(benchmark_of())
    ways = {
        "beams": {"generation__num_beams": 3},
        "stop": {"generation__stop": "[" + plain[0]["answer"][:2] + "]"},
        "second": {"generation__second": "ANSWER", "generation__second_tokens": 3},
    }
    for name, values in ways.items():
        job = benchmark_of(**values)
        for path in job.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        found = answers_of(job)
        if name == "second":
            assert all("\n The answer is " in row["answer"] for row in found)
        else:
            assert [row["answer"] for row in found] != [row["answer"] for row in plain]


def test_the_likelihood_of_options_names_one_of_them(benchmark_of, questions):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    extra = {"question": "Which?", "A": "red", "B": "blue", "answer": "A"}
    questions.write_text("".join(json.dumps(row | extra) + "\n" for row in rows))
    job = benchmark_of(generation__likelihood="true", prompt="mmbench", metric="mmbench")
    found = answers_of(job)
    assert {row["answer"] for row in found} <= {"A", "B"}
    assert all(row["doubtful"] is None for row in found)


def test_pictures_in_base64_are_shown_like_files(benchmark_of, questions):
    plain = answers_of(benchmark_of())
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for row in rows:
        if "image" in row:
            row["image"] = base64.b64encode((questions.parent / "images" / row["image"]).read_bytes()).decode()
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = benchmark_of()
    for path in job.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [row["answer"] for row in answers_of(job)] == [row["answer"] for row in plain]


def test_questions_without_answers_are_answered_and_not_scored(make_job, questions):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for row in rows[:9]:
        del row["answer"]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make_job()
    assert evaluate.execute(job).summary["n_questions"] == 10
    scores = json.loads((job.path / "scores.json").read_text())
    assert (scores["n_without_answer"], scores["seen"]["n_questions"]) == (9, 1)


@pytest.mark.parametrize(
    ("saved", "asked", "used"), [("pad", None, "pad"), ("square", None, "square"), ("pad", "square", "square")]
)
def test_a_model_is_asked_with_the_preprocessing_it_was_trained_with(make_job, model, monkeypatch, saved, asked, used):
    job = make_job(image_aspect=asked, max_samples=1, shuffle_control=False)
    description = evaluate.describe(model)
    monkeypatch.setattr(evaluate, "describe", lambda folder, came_as=None: description | {"image_aspect": saved})
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
