import dataclasses
import subprocess
import sys

import pytest

from vlmrun.data.sample import Turn
from vlmrun.data.templates import TEMPLATES, Template, get
from vlmrun.errors import CheckpointError, ConfigError

TURNS = (
    Turn("user", "<image>\nWhat is it?"),
    Turn("assistant", "A cat."),
    Turn("user", "Sure?"),
    Turn("assistant", "Yes."),
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def text(pieces):
    return "".join(piece.text for piece in pieces)


def supervised(pieces):
    return [piece.text for piece in pieces if piece.supervised]


def test_vicuna_v1():
    pieces = TEMPLATES["vicuna_v1"].render(TURNS)
    assert text(pieces) == (SYSTEM + "USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>")
    assert supervised(pieces) == [" A cat.</s>", " Yes.</s>"]


def test_micro():
    pieces = TEMPLATES["micro"].render(TURNS[:2])
    assert text(pieces) == "<|user|><image>\nWhat is it?<|end|><|assistant|>A cat.<|end|>"
    assert supervised(pieces) == ["A cat.<|end|>"]


def test_plain_throws_the_question_away():
    pieces = TEMPLATES["plain"].render(TURNS[:2])
    assert text(pieces) == "<image>A cat.\n"
    assert supervised(pieces) == ["A cat.\n"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_text_before_the_answer(name):
    template = TEMPLATES[name]
    whole = text(template.render(TURNS[:2]))
    prompt = template.prompt(TURNS[:1])
    assert whole == prompt + template.answer_start + "A cat." + template.answer_end + template.end


@pytest.mark.parametrize("name", TEMPLATES)
def test_round_trip_through_json_fields(name):
    fields = TEMPLATES[name].to_dict()
    assert Template.from_dict(fields) == TEMPLATES[name]
    of_one_value = (
        {"image_token"} if not TEMPLATES[name].image_token else set()
    )  # added later: left out where it is off
    assert set(fields) | of_one_value == {field.name for field in dataclasses.fields(Template)}


def test_a_template_saved_by_another_version_is_refused():
    fields = TEMPLATES["micro"].to_dict()
    fields["colour"] = fields.pop("system")
    with pytest.raises(CheckpointError, match="colour, system"):
        Template.from_dict(fields)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vicuna_v1'"):
        get("vicuna")


def test_special_tokens_stand_in_the_text():
    for template in TEMPLATES.values():
        shown = text(template.render(TURNS[:2]))
        assert all(token in shown for token in (*template.special_tokens, *template.stop))


def test_descriptions_load_no_torch():
    code = (
        "import sys, vlmrun.data.templates, vlmrun.data.formats, vlmrun.data.formats.llava, vlmrun.data.encode, "
        "vlmrun.data.images.loading, vlmrun.data.sampler, vlmrun.data.dataset, vlmrun.stages.prepare; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
