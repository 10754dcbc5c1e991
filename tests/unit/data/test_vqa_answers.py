"""Values of questions are of the types that the format names; several reference answers all count."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data.formats import vqa
from vlmrun.data.lint import Rules, lint
from vlmrun.data.records import open_datasets
from vlmrun.data.sample import Question, Rejected
from vlmrun.errors import DataError
from vlmrun.eval.vqa import is_match, score

ASK = {"question_id": "q", "text": "Which colour?"}


def parse(**record):
    return vqa._parse(ASK | record, ("q.jsonl", 0), ())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"answer": "red"}, ["red"]),
        ({"answer": ["red", "crimson", "red"]}, ["red", "crimson"]),
        ({"answers": ["red", "crimson"]}, ["red", "crimson"]),
        ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": "crimson"}]}, ["red", "crimson"]),
        ({"answer": "red", "answers": ["crimson", "red"]}, ["red", "crimson"]),
        ({"answer": 4}, ["4"]),
        ({"answer": [4, "four"]}, ["4", "four"]),
    ],
)
def test_answers_are_text_a_number_or_a_list_of_them(more, expected):
    found = parse(**more)
    assert isinstance(found, Question)
    assert [found.answer, *found.others] == expected


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    st.just([]),
    st.lists(st.one_of(st.none(), st.booleans(), st.lists(st.text())), min_size=1),
)


@given(value=odd, key=st.sampled_from(["answer", "answers", "question_id", "text", "category", "split", "image"]))
def test_a_value_of_another_type_is_refused_by_its_key(value, key):
    found = parse(**{key: value})
    if key == "image" and value is None:
        assert isinstance(found, Question)
        return
    assert isinstance(found, Rejected)
    assert key in found.what


@pytest.mark.parametrize("key", ["text", "category", "split"])
def test_a_number_is_text_where_the_format_says_so_only(key):
    assert isinstance(parse(**{key: 5}), Rejected)
    assert parse(question_id=5).id == "5"


def test_every_reference_answer_is_right_and_chance_knows_them():
    row = {"expected": "red", "also_expected": ["crimson"], "answer": "Crimson", "split": "test", "category": "all"}
    assert is_match(row)
    assert not is_match(row | {"answer": "blue"})
    rows = [row, row | {"expected": "crimson", "also_expected": []}, row | {"expected": "blue", "also_expected": []}]
    found = score(rows)["seen"]
    assert (found["accuracy"], found["chance"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_training_takes_no_question_with_several_answers(tmp_path, write_data, encoder):
    (tmp_path / "q.jsonl").write_text(json.dumps(ASK | {"answer": ["red", "crimson"]}))
    assert list(lint(tmp_path / "q.jsonl", Rules(format="vqa"))) == []
    config = write_data().model_copy(update={"format": "vqa", "annotations": str(tmp_path / "q.jsonl")})
    with pytest.raises(DataError, match="2 reference answers, and one can be trained"):
        open_datasets({"d": config}, ["d"], encoder=encoder, skipped=None, folder=tmp_path / "index")
