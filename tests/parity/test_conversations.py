"""Token ids and labels against those that the original training codes recorded."""

import os

import numpy as np
import pytest

from scripts import make_parity
from tests.parity import conversations as of
from tests.parity import golden
from vlmrun.data.collate import Collator, dropped_token
from vlmrun.data.compat import settings
from vlmrun.data.dataset import Item
from vlmrun.data.encode import Encoded
from vlmrun.data.sample import IMAGE_TAG, Rejected
from vlmrun.ids import IGNORE, IMAGE_TOKEN

FILES = [name for name in golden.files("g1_conversations/*.jsonl.gz") if "collator" not in name]
COLLATED = golden.files("g1_conversations/*collator*.jsonl.gz")
named = pytest.mark.parametrize("name", FILES, ids=lambda name: name.rpartition("/")[2].split(".")[0])


def test_the_reference_data_are_there():
    golden.need(golden.CASES / "g1_conversations")
    assert FILES or golden.IS_PART


@named
def test_by_default_ids_and_labels_are_equal_but_for_named_deviations(name):
    found = make_parity.compared(name)
    unexplained = [entry for entry in found if entry[1] == "unexplained"]
    assert not unexplained
    assert found or golden.IS_PART


@named
def test_compat_reproduces_ids_labels_and_errors_of_every_record(name):
    found = make_parity.reproduced(name)
    assert found
    assert not [case for case, same in found.items() if not same]


@named
def test_image_tags_move_as_upstream_moves_them(name):
    for case in [case for case in golden.cases(name) if case["has_image"]]:
        template = of.template(case, of.project(name))
        for message, after in zip(case["conversations"], case.get("after_multimodal") or [], strict=False):
            assert template.wrap_images(settings.one_tag(message["value"])) == after
            assert after.count(IMAGE_TAG) == (IMAGE_TAG in message["value"])


@pytest.mark.parametrize("name", COLLATED, ids=lambda name: name.rpartition("/")[2].split(".")[0])
def test_batches_are_cut_padded_and_masked_as_upstream(name):
    project = of.project(name)
    members = {case["id"]: case for file in FILES if of.project(file) == project for case in golden.cases(file)}
    recorded = golden.cases(name)
    batches = [batch for batch in recorded if members.keys() >= set(batch["members"])]
    for batch in batches:
        cases = [members[member] for member in batch["members"]]
        tokenizer = of.tokenizer(cases[0], project)
        dropped = dropped_token(tokenizer, mask_pad_tokens=True, project=project)
        collate = Collator(batch["pad_token_id"], lambda layout: 1, 2, dropped_id=dropped)
        items = []
        for case in cases:
            masked = of.masked(case, project)
            ids, labels = (row[: batch["model_max_length"]] for row in (masked.ids, masked.labels))
            n_images = ids.count(IMAGE_TOKEN)
            items.append(Item(Encoded(ids, labels, False, 0), np.zeros((n_images, 3, 2, 2), np.float32), case["id"]))
        found = collate(items)
        for row in range(len(cases)):
            # What upstream masks is cut out when images are spliced in: only what is left can be compared.
            kept = [i for i, seen in enumerate(batch["attention_mask"][row]) if seen]
            mask = found["attention_mask"][row]
            assert found["input_ids"][row][mask].tolist() == [batch["input_ids"][row][i] for i in kept]
            labels = [IGNORE if (x := batch["labels"][row][i]) == IMAGE_TOKEN else x for i in kept]
            assert found["labels"][row][mask].tolist() == labels
    assert batches or golden.IS_PART


def test_every_record_that_is_refused_says_why():
    reasons = [
        sample.what
        for name in FILES
        for case in golden.cases(name)
        if isinstance(sample := of.own_sample(case), Rejected)
    ]
    assert all(reasons)


def test_the_page_is_what_these_data_show():
    """VLMRUN_UPDATE_PARITY=1 writes it anew. Other data than the ones it was made from have other counts."""
    page = make_parity.PAGE
    if os.environ.get("VLMRUN_UPDATE_PARITY") == "1":
        page.write_text(make_parity.page(), "utf-8")
    if golden.CASES != golden.ASSETS:
        pytest.skip("the page counts the default data")
    golden.need(golden.CASES / "g1_conversations")
    assert page.read_text("utf-8") == make_parity.page(), "run: VLMRUN_UPDATE_PARITY=1 pytest " + __file__
