"""Several, interleaved, cut and missing pictures: from records to logits."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pico import pico_loaded
from vlmrun.config.schema import Tiles
from vlmrun.data import index
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Dataset, Source
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.sample import Sample, Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.hardware import packages
from vlmrun.model.tiles import Tiling, tiling
from vlmrun.model.vlm import VLM

GRIDS = [[16, 32], [32, 16], [32, 32]]
SHAPES = {"a.png": (20, 20), "b.png": (40, 9), "c.png": (7, 31)}
RECORDS = {
    "text": ((), ("What is red?", "a colour")),
    "one": (("a.png",), ("<image>\nWhat?", "a shape")),
    "two in a turn": (("a.png", "b.png"), ("<image>\n<image>\nWhich?", "the first")),
    "interleaved": (("c.png", "a.png"), ("Is <image> like <image> or not?", "yes")),
    "over turns": (("b.png", "c.png"), ("<image>\nWhat?", "a star", "<image>\nAnd this?", "a ring")),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return pico_loaded(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, (width, height) in SHAPES.items():
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(place / name)
    return place


def _dataset(loaded, folder, aspect, rule):
    roles = ("user", "assistant") * 2
    samples = [
        Sample(name, images, tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False)), ("f", index))
        for index, (name, (images, texts)) in enumerate(RECORDS.items())
    ]
    transform = ImageTransform(loaded.preprocessor, Tiles(grids=GRIDS, merge="flat"))
    encoder = Encoder(TEMPLATES["micro"], loaded.tokenizer, transform, aspect, rule, 256)
    return Dataset(index.write(folder / aspect, [("d", "f", samples)]), [Source(ImageFolder(folder), False)], encoder)


@pytest.mark.parametrize("merge", [None, "flat", "spatial", "spatial_unpad"])
def test_a_record_gives_the_same_alone_and_among_others(loaded, folder, merge):
    tiles = None if merge is None else Tiles(grids=GRIDS, merge=merge)
    vlm = VLM(loaded.vlm.llm, loaded.vlm.tower, loaded.vlm.connector, tiles)
    width = vlm.llm.config.hidden_size
    vlm.connector.image_newline = torch.nn.Parameter(torch.ones(width)) if merge == "spatial_unpad" else None
    dataset = _dataset(loaded, folder, "square" if merge is None else "anyres", vlm.image_tokens)
    collate = Collator(1, vlm.image_tokens, vlm.image_size)
    items = [dataset[index] for index in range(len(dataset))]
    together = collate(items)
    with torch.no_grad():
        logits = _logits(vlm, together)
        for row, item in enumerate(items):
            alone = collate([item])
            length = int(alone["attention_mask"].sum())
            assert length == int(together["attention_mask"][row].sum())
            assert torch.allclose(logits[row, :length], _logits(vlm, alone)[0], atol=1e-4), item.id
            assert collate.length(dataset.text(row)) == length, "known without decoding a picture"
        packed = _logits(vlm, collate(items, [len(items)]))[0]
        rows = zip(logits, together["attention_mask"], strict=True)
        assert torch.allclose(packed, torch.cat([row[mask] for row, mask in rows]), atol=1e-4)
    n_pictures = [len(images) for images, _ in RECORDS.values()]
    assert len(together["layouts"]) == sum(n_pictures)


def _logits(vlm, batch):
    inputs = (batch["input_ids"], batch["attention_mask"], batch["pixels"])
    return vlm(*inputs, layouts=batch["layouts"], position_ids=batch.get("position_ids")).logits


def test_a_rule_of_lengths_needs_square_maps_only_to_join_them():
    from vlmrun.errors import ConfigError

    assert tiling(5, Tiles(grids=GRIDS, merge="flat")) == Tiling(5, "flat")
    with pytest.raises(ConfigError, match="no square map"):
        tiling(5, Tiles(grids=GRIDS, merge="spatial"))


def test_a_missing_timm_is_told_with_its_command(monkeypatch):
    assert list(packages.timm("model.tower")) == []
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    (problem,) = packages.timm("model.tower")
    assert "pip install" in problem.fix
