from dataclasses import replace
from functools import lru_cache
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from tests.pico import pico_tokenizer
from vlmrun.data.encode import encode, encode_prompt
from vlmrun.data.sample import Sample, Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import CheckpointError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN

LONG = 10**6
MARKS = ("<image>", "<|", "</s>")  # text that is no ordinary text to a tokenizer or template
words = st.text(max_size=30).filter(lambda t: not any(mark in t for mark in MARKS))


@lru_cache
def tokenizer(bos=True):
    from pathlib import Path

    with TemporaryDirectory() as folder:
        found = AutoTokenizer.from_pretrained(pico_tokenizer(Path(folder), bos=bos))
    found.add_tokens(["</s>"], special_tokens=True)
    return found


def sample(*texts, images=0):
    turns = tuple(Turn("assistant" if i % 2 else "user", t) for i, t in enumerate(texts))
    return Sample("s1", ("a.png",) * images, turns, ("file.json", 3))


def learnt(encoded, bos=True):
    ids = [label for label in encoded.labels if label != IGNORE]
    return tokenizer(bos).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    with_image=st.booleans(),
    name=st.sampled_from(["micro", "vicuna_v1"]),
    bos=st.booleans(),
)
def test_labels_lie_exactly_in_the_answers(rounds, with_image, name, bos):
    texts = [text for pair in rounds for text in pair]
    if with_image:
        texts[0] = "<image>\n" + texts[0]
    template = TEMPLATES[name]
    encoded = encode(sample(*texts, images=with_image), template, tokenizer(bos), image_tokens=[4] * 9, max_length=LONG)

    assert learnt(encoded, bos) == "".join(template.answer_start + a + template.answer_end for _, a in rounds)
    assert encoded.input_ids.count(IMAGE_TOKEN) == with_image
    assert all(label in (IGNORE, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert encoded.n_supervised == sum(label != IGNORE for label in encoded.labels)
    assert not encoded.truncated
    whole = tokenizer(bos).decode(
        [t for t in encoded.input_ids if t != IMAGE_TOKEN],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    rendered = "".join(piece.text for piece in template.render(sample(*texts).turns)).replace("<image>", "")
    assert whole == ("<|bos|>" if bos else "") + rendered


@settings(max_examples=30, deadline=None)
@given(question=words, answer=words, bos=st.booleans())
def test_a_prompt_is_how_the_training_text_begins(question, answer, bos):
    spoken = sample("<image>\n" + question, answer, images=1)
    trained = encode(spoken, TEMPLATES["micro"], tokenizer(bos), image_tokens=[4] * 9, max_length=LONG)
    prompt = encode_prompt(spoken.turns[:1], TEMPLATES["micro"], tokenizer(bos))
    assert trained.input_ids[: len(prompt)] == prompt
    assert all(label == IGNORE for label in trained.labels[: len(prompt)])
    assert all(label != IGNORE for label in trained.labels[len(prompt) :])


def test_bos_comes_once_also_before_an_image():
    bos = tokenizer().bos_token_id
    plain = encode(
        sample("<image>", "red", images=1), TEMPLATES["plain"], tokenizer(), image_tokens=[4] * 9, max_length=LONG
    )
    assert plain.input_ids[:2] == [bos, IMAGE_TOKEN]
    assert plain.input_ids.count(bos) == 1
    assert plain.labels[:2] == [IGNORE, IGNORE]
    assert learnt(plain) == "red\n"


def test_an_end_token_that_the_tokenizer_adds_itself_is_left_out():
    from copy import deepcopy

    eager = deepcopy(tokenizer())
    ids = [(token, eager.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|end|>")]
    eager.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=ids
    )
    assert eager("a")["input_ids"][-1] == eager.eos_token_id  # it really does
    for texts, images in ((("<image>\nx", "red"), 1), (("x", "red"), 0)):
        one, other = (
            encode(sample(*texts, images=images), TEMPLATES["micro"], t, image_tokens=[4] * 9, max_length=LONG)
            for t in (eager, tokenizer())
        )
        assert one == other


@pytest.mark.parametrize("n_tags", [0, 1, 3])
@pytest.mark.parametrize("blocks", [None, ["<image>\0tile\0</image>"] * 2])
def test_tags_that_do_not_fit_the_images_are_a_data_error(n_tags, blocks):
    spoken = sample("<image>" * n_tags + "What?", "red", images=2)
    with pytest.raises(DataError, match=rf"{n_tags} <image> tags in the text for 2 images(.|\n)*file.json\[3\]"):
        encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[4] * 2, max_length=LONG, blocks=blocks)


def test_length_counts_expanded_images_and_is_cut():
    spoken = sample("<image>\nWhat?", "a small blue square on the left", images=1)
    whole = encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[10] * 9, max_length=LONG)
    expanded = len(whole.input_ids) + 9
    assert encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[10] * 9, max_length=expanded) == whole
    cut = encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[10] * 9, max_length=expanded - 2)
    assert cut.truncated
    assert cut.input_ids == whole.input_ids[:-2]
    assert cut.n_supervised == whole.n_supervised - 2


def test_an_image_beyond_the_cut_is_an_error():
    spoken = sample("<image>\nWhat?", "red", images=1)
    with pytest.raises(DataError, match="an image is beyond the maximum length of 8") as error:
        encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[10] * 9, max_length=8)
    assert error.value.problems[0].where == "file.json[3] (id 's1')"


def test_nothing_left_to_learn_is_an_error():
    spoken = sample("word " * 40, "red")
    with pytest.raises(DataError, match="no token of an answer"):
        encode(spoken, TEMPLATES["micro"], tokenizer(), image_tokens=[10] * 9, max_length=20)


@pytest.mark.parametrize("texts", [("<image>", "a", "b", "c"), ("no image", "a")])
def test_plain_takes_captions_only(texts):
    with pytest.raises(DataError, match="template 'plain' takes one question with an image"):
        encode(sample(*texts), TEMPLATES["plain"], tokenizer(), image_tokens=[4] * 9, max_length=LONG)


def test_a_token_across_the_edge_of_an_answer_is_learnt():
    template = replace(TEMPLATES["vicuna_v1"], assistant_start="ASSISTANT: ", answer_start="")
    encoded = encode(sample("What?", "at the top"), template, tokenizer(), image_tokens=[4] * 9, max_length=LONG)
    assert learnt(encoded) == " at the top</s>"  # the space before is part of the first token


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(CheckpointError, match="Slow cannot tell"):
        encode(sample("x", "y"), TEMPLATES["micro"], Slow(), image_tokens=[4] * 9, max_length=LONG)
