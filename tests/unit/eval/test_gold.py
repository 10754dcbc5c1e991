"""Expected answers of any shape: a set is scored, or refused with what is wrong; there is no third way."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmrun.errors import DataError, VlmrunError
from vlmrun.eval import benchmarks, metrics, questions, scoring
from vlmrun.eval.answers_file import Given, Problems, match

KEYS = ["answer", "answers", "choices", "types", "isBalanced", "semantic", "question", "groups", "type", "image",
        "question_type", "options", "A", "B", "category", "hint", "subject", "conversations"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.sampled_from(["", "A", "red", "yes", "判断"])
VALUES = LEAVES | st.lists(LEAVES | st.just({"answer": "a"}), max_size=11) | st.just({"structural": "query"})
PROMPTS = ["text", "choices", "mmbench", "rounds", "science", "mmmu", "cmmmu"]


def made(folder, rows, metric, prompt="text"):
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps({"question_id": n, "text": "q", **row}) + "\n" for n, row in enumerate(rows)))
    (folder / "own.yaml").write_text(f"annotations: {path}\nmetric: {metric}\nprompt: {prompt}\n")
    return benchmarks.load(str(folder / "own.yaml"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), min_size=1, max_size=4),
    metric=st.sampled_from(sorted(metrics.METRICS)),
    prompt=st.sampled_from(PROMPTS),
    said=st.sampled_from(["A", "red", "yes", "", " 1"]),
)
def test_a_set_is_scored_or_refused(tmp_path, rows, metric, prompt, said):
    name, config = made(tmp_path, rows, metric, prompt)
    try:
        asked = questions.read(config)
        answered = match(asked, [Given("0", said, None, 1)], Problems())
        card, _ = scoring.card(name, config, answered)
    except VlmrunError:
        return
    assert json.dumps(card)


@pytest.mark.parametrize(
    ("row", "metric", "what"),
    [
        ({"answer": "A", "choices": ["a", "b"]}, "scienceqa", "not the place of one of 2 choices"),
        ({"answer": 2, "choices": ["a", "b"]}, "scienceqa", "not the place of one of 2 choices"),
        ({"answer": 0, "choices": "ab"}, "scienceqa", "not a list"),
        ({"answers": ["yes"]}, "pope", "has no answer"),
        ({"answer": "a", "types": {}}, "gqa", "`structural` and `semantic`"),
        ({"answer": "a", "groups": 3}, "gqa", "`groups` is not an object"),
    ],
)
def test_what_a_metric_cannot_use_is_named(tmp_path, row, metric, what):
    with pytest.raises(DataError, match="question 0") as caught:
        questions.read(made(tmp_path, [row], metric)[1])
    assert what in str(caught.value)


def test_one_answer_under_answers_is_one_and_not_its_letters(tmp_path):
    name, config = made(tmp_path, [{"answers": "red"}], "exact")
    asked = questions.read(config)
    right, wrong = (
        scoring.card(name, config, match(asked, [Given("0", said, None, 1)], Problems()))[0]["value"]
        for said in ("red", "r")
    )
    assert (right, wrong) == (1.0, 0.0)
