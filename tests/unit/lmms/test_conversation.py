"""What a task of lmms-eval asks, as turns and images."""

import pytest
from PIL import Image

from vlmrun.errors import DataError
from vlmrun.lmms import conversation

RED = Image.new("RGBA", (4, 4), (200, 0, 0, 128))


def test_images_come_first_unless_the_text_has_a_tag_for_each():
    assert conversation.of_text("What?", [RED], "t").turns[0].text == "<image>\nWhat?"
    assert conversation.of_text("A <image> B <image>", [RED, RED], "t").turns[0].text == "A <image> B <image>"
    assert conversation.of_text("What?", [], "t").turns[0].text == "What?"
    assert conversation.of_text("What?", [RED], "t").images == (RED,), "the model's own view decides how it is seen"


def test_messages_keep_their_order():
    said = [
        {"role": "user", "content": [{"type": "image", "url": RED}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    found = conversation.of_messages(said, "t")
    assert [(turn.role, turn.text) for turn in found.turns] == [
        ("user", "<image>\nWhat?"),
        ("assistant", "red"),
        ("user", "Sure?"),
    ]


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda: conversation.of_text("<image>", [RED, RED], "t"), "has 1 <image> tags"),
        (lambda: conversation.of_text("What?", ["film.mp4"], "t"), "shows a str"),
        (lambda: conversation.of_messages([{"role": "system", "content": []}], "t"), "role 'system'"),
        (lambda: conversation.of_messages([{"role": "user", "content": [{"type": "video"}]}], "t"), "shows video"),
        (lambda: conversation.wanted({"num_beams": 4}, "t"), "num_beams"),
    ],
)
def test_what_a_model_does_not_take_is_named(ask, what):
    with pytest.raises(DataError, match=what):
        ask()


def test_generation_values():
    greedy = conversation.wanted({"temperature": 0, "do_sample": False, "top_p": None, "until": ["\n"]}, "t")
    assert (greedy.sampling.temperature, greedy.stop, greedy.max_tokens) == (0.0, ("\n",), 1024)
    drawn = conversation.wanted({"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 8}, "t")
    assert (drawn.sampling.temperature, drawn.sampling.top_p, drawn.sampling.seed, drawn.max_tokens) == (0.5, 0.9, 0, 8)
