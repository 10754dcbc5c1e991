"""Slices, conversations and the whole preprocessing of MiniCPM-V against recordings of the original code."""

import hashlib

import numpy as np
import pytest

from tests.parity import golden
from tests.parity import minicpm as of
from vlmrun.config.schema import Slices
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.images import grid as slices
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.sample import Rejected
from vlmrun.errors import DataError
from vlmrun.ids import IMAGE_TOKEN

KINDS = sorted(of.TEMPLATES)
kinds = pytest.mark.parametrize("kind", KINDS)


def test_every_recorded_size_is_cut_as_upstream():
    cases = golden.cases(f"{of.SET}/slicing.jsonl.gz")
    for case in cases:
        cut = {"max_slices": case["max_slice_nums"], "resolution": case["scale_resolution"], "image_ids": "never"}
        size, patch = (case["width"], case["height"]), case["patch_size"]
        found = slices.plan(size, Slices(marks="nested", **cut), patch)
        for key, upscale in (("find_best_resize_upscale", True), ("find_best_resize_no_upscale", False)):
            assert list(slices.fit(size, case["scale_resolution"], patch, upscale=upscale)) == case[key]
        assert list(found.overview) == case["source_size"]
        if case["best_grid"] is None:
            assert (found.grid, found.refined) == (None, None)
            continue
        columns, rows = found.grid
        assert [columns, rows] == case["best_grid"]
        assert list(found.refined) == case["refine_size"]
        assert [[list(found.cell)] * columns] * rows == case["patch_sizes"]
        for marks, key in (("nested", "grid_placeholder_old"), ("flat", "grid_placeholder_new")):
            text = slices.block(found.grid, Slices(marks=marks, **cut))
            n_queries = case[key].count("<unk>") // (columns * rows)
            whole = text.replace(slices.TILE, "<unk>" * n_queries)
            assert whole == "<image>" + "<unk>" * n_queries + "</image>" + case[key]
    assert cases


@kinds
def test_conversations(kind):
    compared = n_refused = n_same = 0
    for case in golden.cases(f"{of.SET}/conversation_{kind}.jsonl.gz"):
        if of.refused(case["conversation"]):
            n_refused += 1
            # What is refused by its records' rules is labelled as upstream all the same, where it has a text.
            ids, labels = of.conversation(case, compat=True) if kind != "minicpm" else ([], [])
            assert case["result"] != "ok" or ids != case["input_ids"] or labels == of.unshifted(case["target"])
            n_same += ids == case.get("input_ids")
            continue
        if case["result"] != "ok":  # cut to nothing, or marks that do not match: see the preprocessing
            continue
        ids, labels = of.conversation(case, compat=True)
        assert ids == case["input_ids"], case["id"]
        assert labels == of.unshifted(case["target"]), case["id"]
        ids, labels = of.conversation(case, compat=False)
        assert ids == case["input_ids"], case["id"]
        if of.differs_on_purpose(case):
            continue
        # 2.0 has no end token behind an answer in the middle: there it is learnt in the place of what follows.
        expected = of.unshifted(case["target"]) if kind == "minicpm" else of.without_second_end(case["target"], ids)
        assert labels == expected, case["id"]
        compared += 1
    assert compared > n_refused > 0 or golden.IS_PART
    assert n_same or kind == "minicpm" or golden.IS_PART


@kinds
def test_the_whole_preprocessing(kind):
    seen = {"equal": 0, "refused": 0}
    for case in _preprocessed(kind):
        sample = of.sample(case)
        if isinstance(sample, Rejected):
            seen["refused"] += 1
            continue
        if not of.is_cut(case):
            continue
        encoder = of.encoder(case)
        pixels, layouts = encoder.pixels(sample, ImageFolder(golden.CASES / of.SET / "images"))
        if case["result"] != "ok":
            with pytest.raises(DataError):
                encoder.encode(sample, layouts)
            seen["refused"] += 1
            continue
        ids, labels, bounds = of.widened(encoder.encode(sample, layouts), encoder.tokenizer)
        assert ids == case["input_ids"], case["id"]
        assert labels == of.unshifted(case["target"]), case["id"]
        assert bounds == case["image_bound"], case["id"]
        patches = [list(tile) for layout in layouts for tile in layout.patches]
        strips = [strip[:, :, : case["patch_size"] * n * m] for strip, (n, m) in zip(pixels, patches, strict=True)]
        if case["batch_vision"]:
            assert patches == case["tgt_sizes"], case["id"]
        else:  # 2.0 takes whole pictures
            strips = [_picture(strip, *grid) for strip, grid in zip(strips, patches, strict=True)]
        assert [_digest(strip) for strip in strips] == case["pixel_sha256"], case["id"]
        seen["equal"] += 1
    assert all(seen.values()) or golden.IS_PART


def test_batches_of_the_preprocessing():
    every = golden.cases(f"{of.SET}/preprocess.jsonl.gz")
    cases = {case["id"]: case for case in every if case["result"] == "ok" and of.is_cut(case)}
    recorded = golden.cases(f"{of.SET}/collator.json")
    batches = [batch for batch in recorded if cases.keys() >= set(batch["ids"])]
    for batch in batches:
        items = []
        for member in batch["ids"]:
            encoder, sample = of.encoder(cases[member]), of.sample(cases[member])
            pixels, layouts = encoder.pixels(sample, ImageFolder(golden.CASES / of.SET / "images"))
            items.append(Item(encoder.encode(sample, layouts), pixels, member, layouts=layouts))
        found = Collator(0, encoder.image_tokens, 56)(items)
        unk = encoder.tokenizer.convert_tokens_to_ids("<unk>")
        length = batch["max_length"]  # upstream cuts here, vlmrun in the encoder
        ids, labels, mask = (found[key][:, :length] for key in ("input_ids", "labels", "attention_mask"))
        assert ids.masked_fill(ids == IMAGE_TOKEN, unk).tolist() == batch["input_ids"]
        assert labels[:, 1:].tolist() == [row[:-1] for row in batch["labels"]]
        assert mask.int().tolist() == [[int(seen) for seen in row] for row in batch["attention_mask"]]
        assert found["pixels"].shape[0] == sum(len(cases[member]["tgt_sizes"]) for member in batch["ids"])
    assert batches or golden.IS_PART


def _preprocessed(kind):
    return [case for case in golden.cases(f"{of.SET}/preprocess.jsonl.gz") if case["llm_type"] == kind]


def _picture(strip, rows, columns):
    patch = strip.shape[1]
    return strip.reshape(3, patch, rows, columns, patch).transpose(0, 2, 1, 3, 4).reshape(3, rows * patch, -1)


def _digest(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
