from dataclasses import replace

import numpy as np
import pytest
import torch

from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import CheckpointError, DataError
from vlmrun.ids import IMAGE_TOKEN


def with_template(encoder, name):
    return Prompts(replace(encoder, template=TEMPLATES[name]))


def ids(prompts, text):
    return prompts.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_ends_an_answer(encoder):
    end = encoder.tokenizer.convert_tokens_to_ids("<|end|>")
    assert with_template(encoder, "micro").stop_ids == [end]
    plain = with_template(encoder, "plain")
    assert plain.stop_ids == [end, *ids(plain, "\n")]


def test_no_end_is_an_error(encoder):
    class Endless:
        name_or_path = "endless"
        eos_token_id = None
        pad_token_id = 0

        def __call__(self, text, **_):
            return {"input_ids": [1, 2]}

        def decode(self, ids):
            return "?"

    with pytest.raises(CheckpointError, match="no token ends an answer of template 'micro'"):
        Prompts(replace(encoder, tokenizer=Endless()))


def test_answers_end_where_they_should(encoder):
    prompts = with_template(encoder, "micro")
    assert prompts.answer(ids(prompts, " at the top <|end|> and more")) == "at the top"
    assert prompts.answer(ids(prompts, "at the top")) == "at the top"
    assert prompts.answer([]) == ""
    spelled_out = with_template(encoder, "vicuna_v1")  # here </s> is several ordinary tokens
    assert spelled_out.answer(ids(spelled_out, " red</s>USER: x")) == "red"


def test_batches_are_padded_on_the_left(encoder):
    prompts = with_template(encoder, "micro")
    blank = np.zeros((1, 3, 8, 8), dtype=np.float32)
    short = prompts.item([Turn("user", "a?")], blank[:0], "short")
    long = prompts.item([Turn("user", "<image>\nWhat colour is the shape?")], blank, "long")
    batch = prompts.collate([short, long])
    mask = batch["attention_mask"]
    assert mask[:, -1].all()
    assert not mask[0, 0]
    assert (batch["input_ids"][0][~mask[0]] == encoder.tokenizer.pad_token_id).all()
    assert int((batch["input_ids"] == IMAGE_TOKEN).sum()) == encoder.image_tokens(None)
    assert torch.equal(batch["labels"], torch.full_like(batch["labels"], -100))


def test_a_prompt_must_fit(encoder):
    with pytest.raises(DataError, match="the model takes 64"):
        with_template(encoder, "micro").item([Turn("user", "word " * 99)], np.zeros((0, 3, 8, 8)), "q1")
