"""Image features into text against the originals' prepare_inputs_labels_for_multimodal (golden g3).

Every case goes the way of a batch here: encoder's rule of length, collator, tiles, splice.
"""

import collections

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity.golden import cases, tensors
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.encode import Encoded
from vlmrun.data.fits import kept_tokens
from vlmrun.data.images.fitting import best_grid
from vlmrun.data.images.transform import ImageLayout
from vlmrun.errors import ConfigError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.connectors.identity import Identity
from vlmrun.model.tiles import add_newline, tiling
from vlmrun.model.towers.base import Tower
from vlmrun.model.vlm import VLM

# What is deliberately otherwise here, and how each case of it ends.
REFUSED_CUT = "a cut through an image, or one that loses an image: the sample is refused"
OWN_IMAGES = "every image stands in its own sample: features that no text asks for cannot be handed in"
TOO_FEW = "fewer images than image tags: refused before the model sees it"
NOT_BUILT = "upstream raises what its configuration cannot do; here it is another configuration"
PASSED = "one token, or no image: upstream passes ids through, here they are embedded as well"


class _Features(Tower):
    """Stands for tower and connector: gives the recorded features."""

    def __init__(self, features, size):
        super().__init__()
        self.given, self.image_size = features, size
        self.n_patches, self.hidden_dim = features.shape[1:]
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, pixels):
        return [self.given[: len(pixels)]]


class _Text(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self):
        return self.table


def _tiles(case):
    from vlmrun.config.schema import Tiles

    config = case["config"]
    if config.get("image_aspect_ratio") != "anyres":
        return None
    return Tiles(grids=config["image_grid_pinpoints"], merge=config["mm_patch_merge_type"])


def _layouts(case, n_features):
    """How each image of the batch was cut, in order."""
    if case["images_per_entry"] is None:
        return [None] * n_features
    if _tiles(case) is None:  # several whole images in one entry
        return [None] * n_features
    edge = case["tower_image_size"]
    layouts = []
    for n_tiles, size in zip(case["images_per_entry"], case["image_sizes"], strict=True):
        width, height = best_grid(tuple(size), [tuple(grid) for grid in case["config"]["image_grid_pinpoints"]])
        grid = (width // edge, height // edge) if n_tiles > 1 else None
        assert grid is None or n_tiles == grid[0] * grid[1] + 1, "the recorded tiles are those of the best grid"
        layouts.append(ImageLayout(grid, tuple(size)))
    return layouts


def _entries(case, ids, features, layouts):
    """Features of each image, as the originals deal them out: a sample without a tag uses one up.

    An entry of a list or of a 5-d tensor is one image of several tiles, laid flat unless anyres says otherwise.
    """
    counts = case["images_per_entry"] or [1] * len(features)
    return [features[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]


def _run(case, recorded):
    """Embeddings, labels and mask of our own way."""
    name = case["id"]
    get = lambda key: recorded.get(f"{name}/{key}")  # noqa: E731
    ids, mask, labels = get("input_ids"), get("attention_mask"), get("labels")
    features = get("image_features")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    labels = torch.full_like(ids, IGNORE) if labels is None else labels
    tiles = _tiles(case)
    entries = _entries(case, ids, features, None)
    layouts = _layouts(case, len(entries))
    if tiles is None and case["images_per_entry"] is not None:
        # Several pictures laid flat in one place: what a merge called flat does to a column of tiles.
        from vlmrun.config.schema import Tiles

        tiles = Tiles(grids=[[1, 1]], merge="flat")
        layouts = [ImageLayout((1, n - 1), (1, 1)) if n > 1 else None for n in case["images_per_entry"]]
    rule = tiling(features.shape[1], tiles)
    limit = case["config"].get("tokenizer_model_max_length", 10**6)
    items, used, rows = [], 0, []
    for row, keep, label in zip(ids, mask, labels, strict=True):
        tokens, targets = row[keep].tolist(), label[keep].tolist()
        n_tags = tokens.count(IMAGE_TOKEN)
        own = layouts[used : used + n_tags]
        if len(own) < n_tags:
            raise DataError("fewer images than tags", name)
        rows += [entries[used + i] for i in range(n_tags)]
        used += max(n_tags, 1)
        kept = kept_tokens(tokens, [rule(layout) for layout in own], limit)
        if IMAGE_TOKEN in tokens[kept:]:
            raise ConfigError("the cut loses an image", name)
        targets = [IGNORE if token == IMAGE_TOKEN else target for token, target in zip(tokens, targets, strict=True)]
        pixels = np.ones((sum(len(entries[used - max(n_tags, 1) + i]) for i in range(n_tags)), 3, 1, 1), np.float32)
        items.append(Item(Encoded(tokens[:kept], targets[:kept], False, 0), pixels, name, layouts=tuple(own)))
    side = case["config"].get("tokenizer_padding_side", "right")
    batch = Collator(0, rule, 1, padding_side=side)(items)
    own_features = torch.cat(rows) if rows else features[:1]
    table = recorded["embed_tokens"]
    connector = Identity(table.shape[1], table.shape[1])
    add_newline(connector, tiles, table.shape[1])
    if tiles is not None and tiles.merge == "spatial_unpad":
        connector.image_newline.data = recorded["image_newline"].clone()
    vlm = VLM(_Text(table), _Features(own_features, 1), connector, tiles)
    with torch.no_grad():
        embeds = vlm.embed(batch["input_ids"], batch["pixels"], batch["layouts"])
    return embeds, batch, used


def _expected_class(case):
    if case["result"] != "ok":
        return TOO_FEW if case["error_type"] == "IndexError" else NOT_BUILT
    if "inputs_embeds" in case["none_outputs"]:
        return PASSED
    return None


@pytest.mark.parametrize("project", ["llava", "bunny"])
def test_every_case(project):
    recorded = tensors(f"g3_splice/{project}.safetensors")
    counted = collections.Counter()
    for case in cases(f"g3_splice/{project}_cases.json"):
        deviation = _expected_class(case)
        if deviation in (NOT_BUILT, PASSED):
            counted[deviation] += 1
            continue
        try:
            embeds, batch, used = _run(case, recorded)
        except DataError:
            assert deviation == TOO_FEW, case["id"]
            counted[TOO_FEW] += 1
            continue
        except ConfigError:
            counted[REFUSED_CUT] += 1
            continue
        _equal(case, recorded, embeds, batch)
        counted["equal"] += 1
        counted[OWN_IMAGES] += used < len(case["images_per_entry"] or recorded[f"{case['id']}/image_features"])
    assert counted["equal"] > 0
    # A cut is refused only where upstream's own output ends at the limit inside the features.
    assert counted[REFUSED_CUT] <= sum(
        "tokenizer_model_max_length" in c["config"] for c in cases(f"g3_splice/{project}_cases.json")
    )


def _equal(case, recorded, embeds, batch):
    out = {
        key: recorded.get(f"{case['id']}/out/{key}")
        for key in ("inputs_embeds", "labels", "attention_mask", "position_ids")
    }
    mask = batch["attention_mask"]
    expected = out["inputs_embeds"]
    assert embeds.shape == expected.shape, case["id"]
    # Padding is a vector of zeros there and the padding token here; the mask hides both.
    assert torch.equal(embeds[mask], expected[mask]), case["id"]
    assert not expected[~mask].any(), case["id"]
    if out["attention_mask"] is not None:
        assert torch.equal(mask, out["attention_mask"].bool()), case["id"]
    if out["labels"] is not None:
        assert torch.equal(batch["labels"], out["labels"]), case["id"]
    if out["position_ids"] is not None:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0) * mask
        assert torch.equal(positions, out["position_ids"]), case["id"]
