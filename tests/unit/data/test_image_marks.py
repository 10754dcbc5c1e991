"""Image marks of other formats are not trained as words; several images keep their places."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data.compat import settings
from vlmrun.data.formats import image_marks, llava, minicpm
from vlmrun.data.lint import Rules, lint
from vlmrun.data.reading import usable
from vlmrun.data.sample import Rejected, Sample, Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import DataError

CERTAIN = [
    "<img>cat.png</img>", "<|image|>", "<|image_1|>", "<|image_pad|>", "<|vision_start|>", "<|video|>", "<image_00>",
    "<image 1>", "<image1>", "<img_2>", "<video-3>", "<ImageHere>", "<IMG_CONTEXT>",
]  # fmt: skip
DOUBTFUL = ["<img>", "<video>", "<audio>", "[IMG]", "[Image]"]


def parse(ask, answer="yes", **more):
    talk = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    return llava.parse({"id": "r", "conversations": talk} | more, ("f.json", 0))


@given(mark=st.sampled_from(CERTAIN), before=st.text("ab \n", max_size=6), behind=st.text("ab \n", max_size=6))
def test_a_mark_of_another_format_is_refused_wherever_it_stands(mark, before, behind):
    for found in (parse(before + mark + behind), parse("What?", before + mark + behind)):
        assert isinstance(found, Rejected)
        assert repr(mark) in found.what
        assert "<image>" in found.fix


@pytest.mark.parametrize("mark", CERTAIN)
def test_a_mark_is_refused_beside_an_image_too_and_may_be_taken_as_words(mark):
    assert "image mark" in parse(f"<image>\nLike {mark}?", image="a.png").what
    turns = [Turn("user", f"Like {mark}?")]
    pattern = "<img>*" if mark.endswith("</img>") else mark
    assert image_marks.refused(turns, [pattern]) == []
    assert len(image_marks.refused(turns, ["*"])) == 1  # of keys


@pytest.mark.parametrize("mark", DOUBTFUL)
def test_a_word_of_html_is_a_mark_at_the_edge_of_a_question_only(mark):
    assert repr(mark) in parse(f"{mark}\nWhat is it?").what
    assert repr(mark) in parse(f"What is it? {mark}").what
    assert isinstance(parse(f"What does {mark} do?"), Sample)
    assert isinstance(parse("What?", f"{mark} is a tag"), Sample)
    closing = mark.replace("<", "</").replace("[", "[/")
    assert isinstance(parse(f"{mark}a.mp4{closing} is what?"), Sample) == (mark != "<img>")


def test_marks_that_are_taken_as_words_are_counted(tmp_path, caplog):
    path = tmp_path / "f.json"
    talk = [{"from": "human", "value": "What does <video> do?"}, {"from": "gpt", "value": "It shows one."}]
    path.write_text(json.dumps([{"id": "r", "conversations": talk}]))
    assert [each.kind for each in lint(path, Rules(marks=()))] == ["placeholders"]
    config = type("Data", (), {"format": "llava", "split": None, "fields": None, "ignore_keys": [], "images": None,
                               "annotations": str(path), "prepare": None})()  # fmt: skip
    with caplog.at_level(logging.WARNING, "vlmrun"):
        assert len(list(usable(config, []))) == 1
    assert "image marks in 1 records are taken as words, first <video>" in caplog.text


@given(texts=st.lists(st.text("ab ?", max_size=5), min_size=3, max_size=6))
def test_several_images_keep_their_places(texts):
    ask = "<image>".join(["a", *texts])
    found = parse(ask, image=[f"{number}.png" for number in range(len(texts))])
    assert found.turns[0].text == ask


def test_one_image_moves_to_the_front_and_is_counted_and_a_tag_in_an_answer_stays(tmp_path, caplog):
    assert parse("What is <image> this?", image="a.png").turns[0].text == "<image>\nWhat is  this?"
    found = parse("What?", "this <image> one", image="a.png")
    assert [turn.text for turn in found.turns] == ["What?", "this <image> one"]
    path = tmp_path / "f.jsonl"
    asks = ["What?\n<image>", "<image>\nWhat?", "See <image>"]
    talks = [[{"from": "human", "value": ask}, {"from": "gpt", "value": "this"}] for ask in asks]
    path.write_text("\n".join(json.dumps({"image": "a.png", "conversations": talk}) for talk in talks))
    with caplog.at_level(logging.INFO, "vlmrun"):
        assert len(list(llava.read(path))) == 3
    assert "was moved to the front of its question in 2 records" in caplog.text
    path.write_text(json.dumps({"image": "a.png", "conversations": [
        {"from": "human", "value": "What?"}, {"from": "gpt", "value": "<image>"}]}))  # fmt: skip
    assert [each.kind for each in lint(path, Rules(marks=()))] == ["placeholders"]


@given(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_marks_of_minicpm_without_images_are_refused(numbers):
    ask = " and ".join(f"<image_{number:02d}>" for number in numbers)
    chat = [{"role": "user", "content": ask}, {"role": "assistant", "content": "two"}]
    found = minicpm.parse({"id": "a", "conversations": chat}, ("f", 0))
    assert isinstance(found, Rejected)
    assert "image mark" in found.what
    both = minicpm.parse({"id": "a", "imgs": {"x": "a.png"}, "conversations": chat}, ("f", 0))
    assert "`imgs`" in both.what
    assert "image mark" in both.what


def test_under_compat_records_the_tags_of_a_question_collapse_as_upstream_collapses_them():
    talk = [{"from": "human", "value": "Is <image> or <image> red?"}, {"from": "gpt", "value": "this"}]
    several = {"image": ["a.png", "b.png"], "conversations": talk}
    assert llava.parse(several, ("f", 0)).turns[0].text == "Is <image> or <image> red?"
    raw = llava.parse(several, ("f", 0), as_it_is=True)
    with pytest.raises(DataError, match="1 <image> tags are left, but the record has 2 images"):
        settings.as_upstream(raw, TEMPLATES["vicuna_v1"], "llava")
    raw = llava.parse(several | {"image": "a.png"}, ("f", 0), as_it_is=True)
    assert settings.as_upstream(raw, TEMPLATES["vicuna_v1"], "llava").turns[0].text == "<image>\nIs  or  red?"
    assert isinstance(llava.parse(several | {"image": "a.png"}, ("f", 0)), Rejected)


def test_marks_and_tags_in_a_system_text_are_refused():
    tag = parse("What?", system="<image> hi", image="a.png")
    assert "0 <image> tags" not in tag.what
    assert "the system text contains <image>" in tag.what
    both = parse("<image>\nWhat?", system="<image> hi <|video|>", image="a.png").what
    assert "the system text contains '<|video|>'" in both
    assert "the system text contains <image>" in both
    assert isinstance(parse("What?", system="Say <video> where one is meant."), Sample)
    assert image_marks.refused([], ["<|video|>"], "hi <|video|>") == []


def test_every_mark_of_a_turn_is_looked_at_and_an_empty_pattern_matches_none():
    turns = [Turn("user", "a <|image|> b <|video|>")]
    (found,) = image_marks.refused(turns, ["<|image|>"])
    assert "'<|video|>'" in found.what
    assert image_marks.refused(turns, ["<|*|>"]) == []
    assert len(image_marks.refused(turns, [""])) == 1
