"""The embedded picture set: deterministic, honest about what is held out, one right answer to every question."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmrun.data.prepare import shapes
from vlmrun.errors import DataError

N_TRAIN, N_TEST = 120, 60
TRAINING_FILES = ("captions.json", "instruct.json", "lora_a.json", "lora_b.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    shapes.prepare(root, n_train=N_TRAIN, n_test=N_TEST, seed=3)
    return root


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_give_equal_files_and_others_do_not(folder: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        shapes.prepare(tmp_path / str(seed), n_train=N_TRAIN, n_test=N_TEST, seed=seed)
    again, other = contents(tmp_path / "3"), contents(tmp_path / "4")
    assert again == contents(folder)
    assert all(again[name] != other[name] for name in ("captions.json", "test.jsonl", "images/train/000000.png"))


def test_pictures_are_small_rgb_files_in_their_part(folder: Path) -> None:
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        files = sorted((folder / "images" / part).iterdir())
        assert [path.name for path in files] == [f"{index:06d}.png" for index in range(n)]
        for path in files:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))


@pytest.mark.parametrize("name", TRAINING_FILES)
def test_training_files_have_llava_form(folder: Path, name: str) -> None:
    records = read(folder, name)
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(turn["value"].strip() for turn in turns)
        assert "".join(turn["value"] for turn in turns).count("<image>") == ("image" in record)
        if "image" in record:
            assert turns[0]["value"].startswith("<image>\n")
            assert (folder / "images" / record["image"]).is_file()
            assert record["image"].startswith("train/")


def test_every_training_picture_has_one_caption(folder: Path) -> None:
    records = read(folder, "captions.json")
    assert [record["image"] for record in records] == [f"train/{index:06d}.png" for index in range(N_TRAIN)]
    assert {len(record["conversations"]) for record in records} == {2}


def test_instruct_has_several_turns_and_text_without_pictures(folder: Path) -> None:
    records = read(folder, "instruct.json")
    assert {len(record["conversations"]) // 2 for record in records} == {1, 2, 3}
    assert 0 < sum("image" not in record for record in records) < N_TRAIN


def test_each_lora_mixture_leans_towards_its_questions(folder: Path) -> None:
    asked = {text: category for category, texts in shapes.QUESTIONS.items() for text in texts if text}
    for name, emphasis in shapes.LORA_EMPHASIS.items():
        found = Counter(
            asked[turn["value"].removeprefix("<image>\n")] in emphasis
            for record in read(folder, f"{name}.json")
            if "image" in record
            for turn in record["conversations"][::2]
        )
        assert found[True] > 1.5 * found[False] > 0


def test_unseen_pairs_are_in_no_training_caption(folder: Path) -> None:
    texts = " ".join((folder / name).read_text(encoding="utf-8") for name in TRAINING_FILES)
    for colour, shape in shapes.UNSEEN_PAIRS:
        assert f"{colour} {shape}" not in texts
    assert "red circle" in texts  # the search above would find what is there


@given(seed=st.integers(0, 2**32))
def test_unseen_pairs_are_drawn_only_when_asked_for(seed: int) -> None:
    rng = Random(seed)
    seen, unseen = shapes.random_picture(rng), shapes.random_picture(rng, unseen=True)
    assert (seen.colour, seen.shape) not in shapes.UNSEEN_PAIRS
    assert (unseen.colour, unseen.shape) in shapes.UNSEEN_PAIRS


def test_every_colour_and_shape_is_still_trained() -> None:
    trained = shapes.pairs(unseen=False)
    assert {colour for colour, _ in trained} == set(shapes.COLOURS)
    assert {shape for _, shape in trained} == set(shapes.SHAPES)
    assert sorted(trained + shapes.pairs(unseen=True)) == sorted((c, s) for c in shapes.COLOURS for s in shapes.SHAPES)


def test_held_out_questions_are_balanced_and_marked(folder: Path) -> None:
    questions = read(folder, "test.jsonl")
    assert len({question["question_id"] for question in questions}) == len(questions) == 2 * N_TEST
    assert Counter(question["category"] for question in questions) == dict.fromkeys(shapes.QUESTIONS, N_TEST // 3)
    assert {question["split"] for question in questions} == {"seen", "unseen"}
    for question in questions:
        assert set(question) == {"question_id", "image", "text", "answer", "category", "split"}
        assert (folder / "images" / question["image"]).is_file()
        assert question["image"].startswith("test/")
        if question["category"] == "caption":
            names_unseen = any(f"{colour} {shape}" in question["answer"] for colour, shape in shapes.UNSEEN_PAIRS)
            assert names_unseen == (question["split"] == "unseen")


def test_no_test_picture_equals_a_training_picture(folder: Path) -> None:
    pixels = {
        part: {Image.open(path).tobytes() for path in (folder / "images" / part).iterdir()}
        for part in ("train", "test")
    }
    assert len(pixels["train"]) == N_TRAIN
    assert not pixels["train"] & pixels["test"]


def test_an_equal_test_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "draw", lambda picture, rng: Image.new("RGB", (32, 32)))
    with pytest.raises(DataError, match="equals a training image"):
        shapes.prepare(tmp_path, n_train=2, n_test=2, seed=0)


@given(seed=st.integers(0, 2**32))
def test_there_is_one_right_answer(seed: int) -> None:
    picture = shapes.random_picture(Random(seed))
    asked = [picture.question(category) for category in picture.categories()]
    answers = {category: picture.answer(category) for category in picture.categories()}
    assert len(set(asked)) == len(asked)
    assert all(asked)
    assert all(answers.values())
    assert ("size" in answers) == ("position" in answers) == (picture.count == 1)
    # The caption says all of it, so two pictures with one caption have the same answers.
    caption = answers.pop("caption").replace("a ", "one ", 1) if picture.count == 1 else answers.pop("caption")
    assert all(answer in caption for answer in answers.values())


@given(count=st.sampled_from([1, 2, 3]), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_as_many_shapes_are_drawn_as_are_told(count: int, seed: int) -> None:
    rng = Random(seed)
    picture = shapes.random_picture(rng, count=count)
    image = shapes.draw(picture, rng)
    assert _n_islands(image) == count


def _n_islands(image: Image.Image) -> int:
    """Connected regions that are neither background nor its bleed into edges."""
    background = max(image.getcolors(32 * 32) or [], key=lambda found: found[0])[1]
    assert isinstance(background, tuple)
    pixels = [tuple(image.tobytes()[at : at + 3]) for at in range(0, 3 * 32 * 32, 3)]
    ink = {
        (x, y)
        for x in range(32)
        for y in range(32)
        if sum(abs(value - ground) for value, ground in zip(pixels[32 * y + x], background, strict=True)) > 20
    }
    islands = 0
    while ink:
        islands += 1
        reached = [ink.pop()]
        while reached:
            x, y = reached.pop()
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & ink
            ink -= near
            reached += near
    return islands


@given(
    size=st.sampled_from(sorted(shapes.SIZES)), position=st.sampled_from(sorted(shapes.POSITIONS)), seed=st.integers(0)
)
@settings(max_examples=60)
def test_a_single_shape_stands_where_it_is_said_to(size: str, position: str, seed: int) -> None:
    rng = Random(seed)
    image = shapes.draw(shapes.Picture("black", "circle", 1, size, position), rng)
    dark = [(i % 32, i // 32) for i, value in enumerate(image.convert("L").tobytes()) if value < 70]
    centre = tuple(sum(axis) / len(dark) for axis in zip(*dark, strict=True))
    distance = {name: abs(centre[0] - x) + abs(centre[1] - y) for name, (x, y) in shapes.POSITIONS.items()}
    assert min(distance, key=lambda name: distance[name]) == position
    assert (len(dark) > 100) == (size == "large")
