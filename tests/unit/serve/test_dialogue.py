from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlmrun.data.sample import Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import DataError
from vlmrun.serve.dialogue import Dialogue


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 14, 3), dtype=np.uint8))


@pytest.fixture
def dialogue(loaded):
    micro = replace(loaded, template=TEMPLATES["micro"].to_dict())
    return Dialogue(micro, aspect="square", max_new_tokens=6)


def test_history_grows_and_is_forgotten(dialogue):
    first = dialogue.ask("What is it?", [picture()])
    second = dialogue.ask("Sure?")
    assert dialogue.turns == [
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", first),
        Turn("user", "Sure?"),
        Turn("assistant", second),
    ]
    assert [picture.tiles.shape for picture in dialogue.pictures] == [(1, 3, 16, 16)]
    dialogue.ask("And this?", [picture(1)])
    assert len(dialogue.pictures) == 2
    dialogue.reset()
    assert dialogue.turns == []
    assert dialogue.ask("What is it?", [picture()]) == first


def test_the_history_matters(dialogue):
    fresh = dialogue.ask("Sure?")
    dialogue.reset()
    dialogue.ask("What is it?", [picture()])
    assert dialogue.ask("Sure?") != fresh  # random weights of this size never tie


def test_streamed_text_is_the_answer(dialogue):
    parts = []
    answer = dialogue.ask("What is it?", [picture()], parts.append)
    assert "".join(parts) == answer
    assert len(parts) > 1
    dialogue.reset()
    assert dialogue.ask("What is it?", [picture()]) == answer


def test_a_tag_in_the_question_is_refused(dialogue):
    with pytest.raises(DataError, match="<image> stands in the question"):
        dialogue.ask("What is <image>?")


def test_too_long_a_conversation_forgets_nothing(dialogue):
    dialogue.ask("What is it?", [picture()])
    before = list(dialogue.turns)
    with pytest.raises(DataError, match="the model takes 128"):
        dialogue.ask("word " * 200)
    assert dialogue.turns == before


def test_a_caption_model_looks_at_one_picture_at_a_time(loaded):
    captions = Dialogue(replace(loaded, template=TEMPLATES["plain"].to_dict()), aspect="square", max_new_tokens=4)
    first = captions.ask("Describe.", [picture()])
    captions.ask("Describe.", [picture(1)])
    assert len(captions.turns) == 2
    assert captions.ask("Other words, same picture", [picture()]) == first
    with pytest.raises(DataError, match="only describes images"):
        captions.ask("What is it?")


def test_without_a_saved_template_the_model_names_it(loaded):
    assert Dialogue(loaded, aspect="square", max_new_tokens=4).model.template == TEMPLATES["micro"]
