"""Pai-Megatron-Patch's prompts, labels and pictures against the recorded ones."""

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from tests.parity.golden import CASES, IS_PART, asset, cases, need, tensors
from vlmrun.data.encode import encode
from vlmrun.data.formats import wds
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.sample import IMAGE_TAG, Rejected
from vlmrun.data.shards import keys
from vlmrun.data.shards.tar import Place
from vlmrun.data.templates import get
from vlmrun.errors import DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.tokenizers import load_tokenizer

SET = "g9_megatron_data"
IMAGE_TOKENS = 576
# What Pai's recipe lays over CLIP's own preparation (conf/model/pai_llava_mistral_7b.yaml).
IMAGENET = {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@lru_cache
def tokenizer(name, settings, special):
    """A recorded tokenizer, its added special tokens but the picture's: ours has none."""
    folder = CASES / SET / f"tokenizer_{name}"
    folder = folder if folder.is_dir() else asset(f"tokenizers/{name}")
    found = load_tokenizer(folder, legacy=json.loads(settings).get("legacy"), tokens={"pad": "<unk>"})
    found.add_tokens([text for text in special if text != IMAGE_TAG], special_tokens=True)
    return found


def sample_of(case, context, answer):
    place = str(Place("pretrain-0.tar", 0, 1, "x.jpg"))
    turns = [{"from": "human", "value": context}, {"from": "gpt", "value": answer}]
    found = wds.parse(case.get("key", "x"), turns, place, ("shards", 0))
    # Under energon 4 the key has the shard's name in front.
    if not isinstance(found, Rejected) and case.get("subflavors", {}).get("is_llava_training"):
        return keys.as_pai(replace(found, id="llava"), "energon7")
    return found if isinstance(found, Rejected) else keys.as_pai(found, "energon7")


def ids_of(case, context, answer):
    known = tokenizer(
        case["tokenizer"], json.dumps(case.get("tokenizer_kwargs", {})), tuple(case["added_special_tokens"])
    )
    sample = sample_of(case, context, answer)
    if isinstance(sample, Rejected):
        raise DataError([sample.problem])
    encoded = encode(sample, get("pai_mistral"), known, image_tokens=[IMAGE_TOKENS], max_length=1 << 20)
    # There <image> is the token behind the vocabulary.
    return [len(known) if token == IMAGE_TOKEN else token for token in encoded.input_ids], encoded.labels


def is_ours_alone(case):
    """Whether ours refuses what upstream trains: two tags for one picture, and an empty answer."""
    return case["context"].count(IMAGE_TAG) > 1 or not str(case["answer"]).strip()


def test_every_prompt_and_its_labels():
    compared = refused = 0
    for case in cases(f"{SET}/encode.jsonl.gz"):
        if case["error"] is not None:
            continue
        if is_ours_alone(case):
            with pytest.raises(DataError):
                ids_of(case, case["context"], case["answer"])
            refused += 1
            continue
        ids, labels = ids_of(case, case["context"], case["answer"])
        assert ids == case["input_ids"], case["id"]
        assert labels == case["target"], case["id"]
        compared += 1
    assert compared > refused or IS_PART


def test_what_upstream_skips_without_a_word_is_trained_or_refused_by_name():
    """[INST] in pieces is no reason to lose a sample; a tag in an answer and a list of answers are told."""
    trained = told = 0
    for case in cases(f"{SET}/encode.jsonl.gz"):
        if case["error"] is None:
            continue
        if isinstance(case["answer"], str) and IMAGE_TAG not in case["answer"]:
            _, labels = ids_of(case, case["context"], case["answer"])
            assert any(label != IGNORE for label in labels), case["id"]
            trained += 1
        else:
            with pytest.raises(DataError):
                ids_of(case, case["context"], case["answer"])
            told += 1
    assert (trained and told) or IS_PART


def test_rows_of_a_batch():
    """Upstream pads with 0 to the longest, and shifts labels; ours shifts in the loss."""
    compared = 0
    for case in cases(f"{SET}/batches.json"):
        for row, sample in enumerate(case["samples"]):
            ids, labels = ids_of(case, sample["context"], sample["answer"])
            text, target = case["text"][row], case["target"][row]
            assert ids == text[: len(ids)]
            assert not any(text[len(ids) :])
            assert labels == target[: len(labels)]
            compared += 1
    assert compared


def test_pictures():
    recorded, compared = tensors(f"{SET}/images.safetensors"), 0
    for case in cases(f"{SET}/images.json"):
        if case["error"] is not None or case["img_h"] != case["img_w"]:
            continue
        edge = {"height": case["img_h"], "width": case["img_w"]}
        transform = ImageTransform({"size": edge, "do_center_crop": True, "crop_size": edge, **IMAGENET})
        with Image.open(need(CASES / SET / "pictures" / case["picture"])) as picture:
            pixels, layout = transform.tiles(picture.convert("RGB"), "pad_after")
        assert layout is None
        difference = np.abs(pixels[0] - recorded[case["id"]].numpy())
        assert difference.max() <= 1e-5, case["id"]
        compared += 1
    assert compared
