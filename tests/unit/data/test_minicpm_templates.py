"""MiniCPM-V's templates: what a prompt asks is how training began, and what is learnt is what was answered."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.pico_minicpm import llm
from vlmrun.config.schema import Slices
from vlmrun.data import templates
from vlmrun.data.encode import encode, encode_prompt
from vlmrun.data.images import grid
from vlmrun.data.sample import Sample, Turn
from vlmrun.data.templates import Template
from vlmrun.ids import IGNORE, IMAGE_TOKEN

NAMES = ("minicpm_v2", "minicpm_v25", "minicpm_v26")
RULES = Slices(max_slices=4, resolution=32, marks="nested", image_ids="never")
BLOCK = grid.block((2, 1), RULES)
named = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    known = AutoTokenizer.from_pretrained(llm(tmp_path_factory.mktemp("pico")))
    known.add_tokens(["<用户>", "<AI>", "</s>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    return known


def _sample(texts, n_images=1):
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))
    return Sample("x", ("a.png",) * n_images, turns, ("f", 0))


def _encoded(sample, name, tokenizer):
    blocks = [BLOCK] * len(sample.images)
    tiles = [4] * sum(block.count(grid.TILE) for block in blocks)
    return encode(sample, templates.get(name), tokenizer, image_tokens=tiles, max_length=4000, blocks=blocks)


_WORDS = st.text(alphabet="abc ?\n", min_size=1, max_size=12).filter(str.strip)


@named
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(_WORDS, min_size=4, max_size=4))
def test_a_prompt_is_how_training_began(name, tokenizer, texts):
    texts = ["<image>\n" + texts[0].strip(), *(text.strip() for text in texts[1:])]
    whole = _encoded(_sample(texts), name, tokenizer)
    template = templates.get(name)
    for n_turns in (1, 3):
        turns = _sample(texts).turns[:n_turns]
        prompt = encode_prompt(turns, template, tokenizer, blocks=[BLOCK])
        assert whole.input_ids[: len(prompt)] == prompt


@named
def test_answers_and_their_ends_are_learnt(name, tokenizer):
    whole = _encoded(_sample(["<image>\nWhich?", "red", "Sure?", "yes"]), name, tokenizer)
    learnt = [label for label in whole.labels if label != IGNORE]
    end = templates.get(name).answer_end
    assert tokenizer.decode(learnt) == f"red{end}yes{end}"
    assert whole.spans == (4, 4, 4)
    assert whole.input_ids.count(IMAGE_TOKEN) == 3
    others = [i for i, label in enumerate(whole.labels) if label not in (IGNORE, whole.input_ids[i])]
    # 2.0 has no end behind an answer in the middle: it is learnt where the next turn begins.
    assert len(others) == (1 if name == "minicpm_v2" else 0)


def test_25_takes_off_the_space_around_a_turn(tokenizer):
    plain, spaced = (_encoded(_sample(texts, 0), "minicpm_v25", tokenizer) for texts in (["a", "b"], [" a\n", "\n b "]))
    assert plain == spaced


def test_a_template_saved_before_these_fields_were_there_is_read():
    values = templates.get("micro").to_dict()
    del values["trims"], values["by_turn"]
    assert Template.from_dict(values) == templates.get("micro")
