"""Items -> one padded batch. Image tokens are expanded here, so every length downstream is the true one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vlmrun.data.dataset import Item
from vlmrun.data.images.patch_strips import joined
from vlmrun.data.images.transform import ImageLayout
from vlmrun.ids import IGNORE, IMAGE_TOKEN


class Use(NamedTuple):
    """What a batch holds of one sample: its number in the dataset, positions, supervised tokens."""

    number: int | None
    tokens: int
    supervised: int
    truncated: bool
    skipped: bool


class Collator:
    """Pads and stacks.

    Args:
        image_tokens: positions an image of a layout takes; of none, an ordinary one.
        image_size: height and width of the blank image of a batch without images.
        padding_side: left for generation, so that prompts end together.
        dropped_id: a token taken out wherever it stands (`compat.mask_pad_tokens`, see `dropped_token`).
    """

    def __init__(
        self,
        pad_id: int,
        image_tokens: Callable[[ImageLayout | None], int],
        image_size: int,
        padding_side: Literal["left", "right"] = "right",
        dropped_id: int | None = None,
    ) -> None:
        self.pad_id = pad_id
        self.image_tokens = image_tokens
        self.image_size = image_size
        self.padding_side = padding_side
        self.dropped_id = dropped_id

    def __call__(self, items: Sequence[Item], sizes: Sequence[int] | None = None) -> dict[str, Any]:
        """One batch.

        Args:
            sizes: how many items share each row, one after another; None: each has a row to itself.

        Returns:
            `input_ids`, `labels` [B, L] long; `attention_mask` [B, L] bool, true on real tokens whatever their id;
            `pixels` [S, 3, H, W], all tiles of all images, one blank image when there is none; `layouts`, how each
            image was cut, None for one that was not; `ids` of the samples; `uses`, a `Use` of each; `skipped`: for each
            unusable sample its `id` and `reason`. With `sizes` also `position_ids` [B, L], which begin at 0 with every
            item, and once more with the padding.
        """
        rows = [self.expanded(item) for item in items]
        own, lengths = rows, [len(ids) for ids, _ in rows]
        if sizes is not None:
            rows = _joined(rows, sizes)
        length = max(len(ids) for ids, _ in rows)
        given = [item.pixels for item in items if len(item.pixels)]
        pixels = joined(given) if given else np.zeros((1, 3, self.image_size, self.image_size), dtype=np.float32)
        batch = {
            "input_ids": torch.tensor([self._pad(ids, self.pad_id, length) for ids, _ in rows]),
            "labels": torch.tensor([self._pad(labels, IGNORE, length) for _, labels in rows]),
            "attention_mask": torch.tensor([self._pad([True] * len(ids), False, length) for ids, _ in rows]),
            "pixels": torch.from_numpy(pixels),
            "layouts": [layout for item in items for layout in item.each_layout],
            "ids": [item.id for item in items],
            "uses": [_use(item, ids, labels) for item, (ids, labels) in zip(items, own, strict=True)],
            "skipped": [{"id": item.id, "reason": item.skipped} for item in items if item.skipped is not None],
        }
        if sizes is None:
            return batch
        assert self.padding_side == "right"
        of_rows = iter(lengths)
        places = [[place for _ in range(size) for place in range(next(of_rows))] for size in sizes]
        padded = [row + list(range(length - len(row))) for row in places]
        return batch | {"position_ids": torch.tensor(padded)}

    def length(self, item: Item) -> int:
        """Positions an item takes."""
        return len(self.expanded(item)[0])

    def expanded(self, item: Item) -> tuple[list[int], list[int]]:
        """Repeats each image's token for every position the image takes."""
        counts = iter(item.encoded.spans or [self.image_tokens(layout) for layout in item.each_layout])
        wide_ids: list[int] = []
        wide_labels: list[int] = []
        for token, label in zip(item.encoded.input_ids, item.encoded.labels, strict=True):
            if token == self.dropped_id:
                continue
            times = next(counts) if token == IMAGE_TOKEN else 1
            wide_ids += [token] * times
            wide_labels += [label] * times
        return wide_ids, wide_labels

    def _pad(self, row: list[Any], value: Any, length: int) -> list[Any]:
        padding = [value] * (length - len(row))
        return padding + row if self.padding_side == "left" else row + padding


def _use(item: Item, ids: list[int], labels: list[int]) -> Use:
    """Nothing predicts a sample's first token, so that it is not supervised."""
    n_supervised = sum(label != IGNORE for label in labels[1:])
    skipped = item.skipped is not None
    return Use(item.number, len(ids), n_supervised, item.encoded.truncated and not skipped, skipped)


def _joined(rows: list[tuple[list[int], list[int]]], sizes: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of items that share a row, one after another.

    No token predicts an item's first one: alone nothing comes before it, and here another item does.
    """
    assert sum(sizes) == len(rows)
    left = iter(rows)
    joined = []
    for size in sizes:
        members = [next(left) for _ in range(size)]
        ids = [token for member, _ in members for token in member]
        labels = [label for _, member in members for label in [IGNORE, *member[1:]]]
        joined.append((ids, labels))
    return joined


def dropped_token(tokenizer: Any, *, mask_pad_tokens: bool, project: str | None) -> int | None:
    """The token that upstream loses in real text: its mask is "not the padding token", and what is masked is cut out.

    Bunny hides the end token from that comparison, so that one which pads as well is kept.
    """
    pad = tokenizer.pad_token_id
    spared = project == "bunny" and pad == tokenizer.eos_token_id
    return pad if mask_pad_tokens and not spared else None
