import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import templates
from vlmrun.data.encoder import Encoder
from vlmrun.data.formats import vqa
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import Question, Turn
from vlmrun.errors import DataError
from vlmrun.eval.asked import Asked, batches, with_other_pictures
from vlmrun.eval.predict import Asker


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
    return [Asked(question, ImageFolder(questions.parent / "images"), "test") for question in vqa.read(questions)]


def quiet(done, total):
    pass


def test_rows_and_file(asker, asked, tmp_path):
    told = []
    rows = asker.predict(asked, tmp_path / "answers.jsonl", lambda *numbers: told.append(numbers))
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(10)]
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()] == rows
    assert {key: rows[1][key] for key in rows[1] if key not in ("answer", "cut")} == {
        "question_id": "q1",
        "data": "test",
        "image": "1.png",
        "text": "What colour is the shape?",
        "category": "colour",
        "split": "seen",
        "expected": "red",
    }
    assert all(row.get("cut", True) for row in rows)  # there only where an answer has no end
    assert rows[9]["image"] is None
    assert len({row["answer"] for row in rows}) > 1  # the model looks at its input at all


def test_a_batch_answers_as_one_at_a_time(asker, asked, tmp_path):
    together = asker.predict(asked, tmp_path / "a.jsonl", quiet)
    alone = replace(asker, batch=1).predict(asked, tmp_path / "b.jsonl", quiet)
    assert alone == together


def test_whole_batches_of_an_interrupted_attempt_are_kept(asker, asked, tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = asker.predict(asked, path, quiet)
    first, second, _ = batches(asked, asker.batch)
    rows = {row["question_id"]: row for row in whole}
    kept = [rows[one.question.id] | {"answer": "kept from before"} for one in first]
    path.unlink()
    parts = tmp_path / "answers.jsonl.parts"
    parts.mkdir()
    torn = [rows[one.question.id] for one in second[:2]]  # of the next batch, the second torn
    text = "".join(json.dumps(row) + "\n" for row in [*kept, *torn])
    (parts / "rank-3.jsonl").write_text(text[:-9])  # of an attempt with more ranks
    told = []
    found = asker.predict(asked, path, lambda *numbers: told.append(numbers))
    assert told == [(8, 10), (10, 10)]
    saved = {row["question_id"]: row for row in kept}
    assert found == [saved.get(row["question_id"], row) for row in whole]
    assert not parts.exists()


def test_an_attempt_cut_anywhere_ends_in_the_same_file(asker, asked, tmp_path):
    path, parts = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.parts"
    asker.predict(asked, path, quiet)
    content = path.read_bytes()
    order = [one.question.id for batch in batches(asked, asker.batch) for one in batch]
    lines = {json.loads(line)["question_id"]: line for line in content.splitlines(keepends=True)}
    made = b"".join(lines[id] for id in order)
    generator = random.Random(5)
    for _ in range(20):
        path.unlink()
        parts.mkdir()
        (parts / "rank-0.jsonl").write_bytes(made[: generator.randrange(len(made))])
        asker.predict(asked, path, quiet)
        assert path.read_bytes() == content


def test_any_batch_gives_the_same_answers(asker, asked, tmp_path):
    found = [replace(asker, batch=size).predict(asked, tmp_path / f"{size}.jsonl", quiet) for size in (1, 3, 10)]
    assert found[0] == found[1] == found[2]


def test_a_picture_asked_about_often_goes_through_the_tower_once(asker, asked, tmp_path, monkeypatch):
    same = [replace(one, question=replace(one.question, images=("0.png",))) for one in asked[:9]]
    calls = []
    real = type(asker.vlm).features
    monkeypatch.setattr(type(asker.vlm), "features", lambda *given: calls.append(1) or real(*given))
    asker.predict(same, tmp_path / "a.jsonl", quiet)
    assert len(calls) == 1


def test_a_finished_file_is_not_asked_again(asker, asked, tmp_path):
    rows = asker.predict(asked, tmp_path / "a.jsonl", quiet)

    class Refuses:
        def generate(self, *args, **kwargs):
            raise AssertionError("asked again")

    assert replace(asker, vlm=Refuses()).predict(asked, tmp_path / "a.jsonl", quiet) == rows


def test_a_missing_picture(asker, asked, tmp_path):
    (asked[2].images.root / "2.png").unlink()
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
        Asked(
            Question(f"q{i}", (name,), (Turn("user", "?"),), ("f", i), "red", category, "test"),
            ImageFolder(Path(root)),
            "d",
        )
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
