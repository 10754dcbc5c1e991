import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import templates
from vlmrun.data.dataset import Encoder
from vlmrun.data.formats import vqa
from vlmrun.data.images.open import ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import Question, Turn
from vlmrun.errors import DataError
from vlmrun.eval.predict import Asked, Asker, with_other_pictures


@pytest.fixture
def asker(loaded):
    encoder = Encoder(
        templates.get("micro"),
        loaded.tokenizer,
        ImageTransform(loaded.preprocessor),
        "square",
        loaded.vlm.image_tokens,
        loaded.model.max_length,
    )
    return Asker(loaded.vlm, Prompts(encoder), batch=4, max_new_tokens=5)


@pytest.fixture
def asked(questions):
    return [Asked(question, questions.parent / "images", "test") for question in vqa.read(questions)]


def quiet(done, total):
    pass


def test_rows_and_file(asker, asked, tmp_path):
    told = []
    rows = asker.predict(asked, tmp_path / "answers.jsonl", lambda *numbers: told.append(numbers))
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(10)]
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()] == rows
    assert {key: rows[1][key] for key in rows[1] if key != "answer"} == {
        "question_id": "q1",
        "data": "test",
        "image": "1.png",
        "text": "What colour is the shape?",
        "category": "colour",
        "split": "seen",
        "expected": "red",
    }
    assert rows[9]["image"] is None
    assert len({row["answer"] for row in rows}) > 1  # the model looks at its input at all


def test_a_batch_answers_as_one_at_a_time(asker, asked, tmp_path):
    together = asker.predict(asked, tmp_path / "a.jsonl", quiet)
    alone = replace(asker, batch=1).predict(asked, tmp_path / "b.jsonl", quiet)
    assert alone == together


def test_goes_on_where_it_was_interrupted(asker, asked, tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = asker.predict(asked, path, quiet)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = json.loads(lines[0])
    kept["answer"] = "kept from before"  # shows that finished batches are not asked again
    start = json.dumps(kept).encode() + b"\n" + b"".join(lines[1:4])
    told = []
    path.write_bytes(start + lines[4] + lines[5][:7])  # two of the next batch, the second torn
    rows = asker.predict(asked, path, lambda *numbers: told.append(numbers))
    assert told == [(8, 10), (10, 10)]
    assert rows == [kept, *whole[1:]]
    assert path.read_bytes() == start + b"".join(lines[4:])


def test_a_finished_file_is_not_asked_again(asker, asked, tmp_path):
    rows = asker.predict(asked, tmp_path / "a.jsonl", quiet)

    class Refuses:
        def generate(self, *args, **kwargs):
            raise AssertionError("asked again")

    assert replace(asker, vlm=Refuses()).predict(asked, tmp_path / "a.jsonl", quiet) == rows


def test_a_missing_picture(asker, asked, tmp_path):
    (asked[2].images / "2.png").unlink()
    with pytest.raises(DataError, match=r"image '2\.png' does not exist"):
        asker.predict(asked, tmp_path / "a.jsonl", quiet)
    rows = asker.predict([replace(one, skip=True) for one in asked], tmp_path / "b.jsonl", quiet)
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(10) if i != 2]
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in skipped] == ["q2"]


@pytest.mark.parametrize("seed", range(6))
def test_the_control_gives_each_question_another_picture_of_its_category(asked, seed):
    turned = with_other_pictures(asked, seed)
    assert [one.question.id for one in turned] == [f"q{i}" for i in range(9)]  # the text-only one is left out
    by_id = {one.question.id: one.question for one in asked}
    for one in turned:
        original = by_id[one.question.id]
        assert one.question.images != original.images
        assert one.question == replace(original, images=one.question.images)
    for category in ("colour", "where"):
        mine = [one.question.images for one in turned if one.question.category == category]
        theirs = [one.images for one in by_id.values() if one.category == category and one.images]
        assert sorted(mine) == sorted(theirs)
    assert turned == with_other_pictures(asked, seed)


def test_a_question_alone_in_its_category_has_no_control(asked):
    assert with_other_pictures(asked[:1], 0) == []


PLACES = st.tuples(st.sampled_from(["/a", "/b"]), st.sampled_from(["0.png", "1.png", "2.png"]), st.sampled_from("xy"))


@given(st.lists(PLACES, max_size=30), st.integers(0, 1000))
def test_nobody_keeps_its_own_picture_however_many_ask_about_it(places, seed):
    """Roots with the same file names, several questions per picture in any order."""
    asked = [
        Asked(Question(f"q{i}", (name,), (Turn("user", "?"),), ("f", i), "red", category, "test"), Path(root), "d")
        for i, (root, name, category) in enumerate(places)
    ]
    turned = with_other_pictures(asked, seed)
    assert turned == with_other_pictures(asked, seed)
    pictures = {c: {(one.images, one.question.images) for one in asked if one.question.category == c} for c in "xy"}
    expected = [one for one in asked if len(pictures[one.question.category]) > 1]
    for one, before in zip(turned, expected, strict=True):
        picture = (one.images, one.question.images)
        assert picture != (before.images, before.question.images)
        assert picture in pictures[before.question.category]
        assert replace(one, question=before.question, images=before.images) == before
    for category in "xy":  # every picture is still shown
        shown = {(one.images, one.question.images) for one in turned if one.question.category == category}
        assert shown in (pictures[category], set())
