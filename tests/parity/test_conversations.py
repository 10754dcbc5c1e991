"""Token ids and labels against those that the original training codes recorded.

The reference data are read, never named: every record of every file of the templates in scope is compared, or refused
by vlmrun's own reader for a reason the issue asks for (roles, empty answers, image counts).
"""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vlmrun.data.encode import IGNORE, IMAGE_TOKEN, encode
from vlmrun.data.formats import llava
from vlmrun.data.sample import IMAGE_TAG, Rejected
from vlmrun.data.templates import TEMPLATES

GOLDEN = Path(os.environ.get("VLMRUN_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
# The value of the version argument in the original command line -> our template. Bunny's `minicpm` is the same text.
VERSIONS = {"plain": "plain", "v1": "vicuna_v1", "minicpm": "vicuna_v1"}
PATTERNS = ("*plain*.jsonl.gz", "*_v1.jsonl.gz", "*_v1_legacy_tokenizer.jsonl.gz", "*_minicpm.jsonl.gz")
UNLIMITED = 10**6


def test_the_reference_data_are_there():
    if not _files():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no reference data in {GOLDEN}: set VLMRUN_GOLDEN")
        pytest.skip(f"no reference data in {GOLDEN}")


def _files():
    found = {path for pattern in PATTERNS for path in (GOLDEN / "g1_conversations").glob(pattern)}
    return sorted(path for path in found if _cases(path))


def _cases(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    return [case for case in cases if case["result"] == "ok" and case["version"] in VERSIONS]


@lru_cache
def _tokenizer(name, options):
    kept = {key: value for key, value in json.loads(options).items() if key != "use_fast"}
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / name, **kept)


def _loads_faithfully(name):
    """transformers 5 derives another tokenizer from a bare SentencePiece file (see the data's README)."""
    return (GOLDEN / "tokenizers" / name / "tokenizer.json").is_file()


def _sample(case):
    """The record after upstream's rewriting step, with one image for every tag that step left."""
    texts = case.get("after_multimodal") or [message["value"] for message in case["conversations"]]
    n_images = sum(text.count(IMAGE_TAG) for text in texts) if case["has_image"] else 0
    messages = [{"from": m["from"], "value": text} for m, text in zip(case["conversations"], texts, strict=True)]
    return llava.parse({"id": case["id"], "image": ["x"] * n_images, "conversations": messages}, ("case", 0))


def _encode(case, sample):
    tokenizer = _tokenizer(case["tokenizer"], json.dumps(case["tokenizer_kwargs"]))
    # Upstream cuts text-only samples here and samples with images in its collator.
    limit = UNLIMITED if case["has_image"] else case["model_max_length"]
    return encode(sample, TEMPLATES[VERSIONS[case["version"]]], tokenizer, image_tokens=1, max_length=limit)


def _expected_labels(case):
    """Upstream sets the label of an image to ignore later, when it splices the image in."""
    return [IGNORE if label == IMAGE_TOKEN else label for label in case["labels"]]


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.name.split(".")[0])
def test_ids_and_labels_equal_the_reference(path):
    compared, different = 0, []
    for case in _cases(path):
        sample = _sample(case)
        if isinstance(sample, Rejected):
            continue
        found = _encode(case, sample)
        same_ids = found.input_ids == case["input_ids"]
        if same_ids or _loads_faithfully(case["tokenizer"]):
            compared += 1
            if not same_ids or found.labels != _expected_labels(case):
                different.append(case["id"])
    assert not different
    assert compared > len(_cases(path)) / 3  # most are compared; a tokenizer that fits nowhere would show nothing


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.name.split(".")[0])
def test_only_records_the_issue_calls_bad_are_refused(path):
    for case in _cases(path):
        sample = _sample(case)
        if isinstance(sample, Rejected):
            texts = [message["value"] for message in case["conversations"]]
            starts_wrong = case["conversations"][0]["from"] != "human"
            tag_without_image = not case["has_image"] and any(IMAGE_TAG in text for text in texts)
            assert starts_wrong or tag_without_image or any(not text.strip() for text in texts), case["id"]


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.name.split(".")[0])
def test_image_tags_move_as_upstream_moves_them(path):
    moved = 0
    for case in _cases(path):
        for message, after in zip(case["conversations"], case.get("after_multimodal") or [], strict=False):
            if message["value"].count(IMAGE_TAG) <= 1:  # of several tags upstream keeps one, vlmrun all
                moved += 1
                assert llava.move_image_tags(message["value"]) == after
    assert moved > 0
