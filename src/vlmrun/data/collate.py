"""Items -> one padded batch. Image tokens are expanded here, so every length downstream is the true one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from vlmrun.data.dataset import Item
from vlmrun.data.encode import IGNORE, IMAGE_TOKEN


class Collator:
    """Pads and stacks.

    Args:
        image_tokens: positions one image takes.
        image_size: height and width of the blank image of a batch without images.
        padding_side: left for generation, so that prompts end together.
    """

    def __init__(
        self, pad_id: int, image_tokens: int, image_size: int, padding_side: Literal["left", "right"] = "right"
    ) -> None:
        self.pad_id = pad_id
        self.image_tokens = image_tokens
        self.image_size = image_size
        self.padding_side = padding_side

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """One batch.

        Returns:
            `input_ids`, `labels` [B, L] long; `attention_mask` [B, L] bool, true on real tokens whatever their id;
            `pixels` [S, 3, H, W], one blank image when there is none; `ids` of the samples; `skipped`: for each
            unusable sample its `id` and `reason`.
        """
        rows = [self._expand(item.encoded.input_ids, item.encoded.labels) for item in items]
        length = max(len(ids) for ids, _ in rows)
        pixels = np.concatenate([item.pixels for item in items])
        if len(pixels) == 0:
            pixels = np.zeros((1, 3, self.image_size, self.image_size), dtype=np.float32)
        return {
            "input_ids": torch.tensor([self._pad(ids, self.pad_id, length) for ids, _ in rows]),
            "labels": torch.tensor([self._pad(labels, IGNORE, length) for _, labels in rows]),
            "attention_mask": torch.tensor([self._pad([True] * len(ids), False, length) for ids, _ in rows]),
            "pixels": torch.from_numpy(pixels),
            "ids": [item.id for item in items],
            "skipped": [{"id": item.id, "reason": item.skipped} for item in items if item.skipped is not None],
        }

    def _expand(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """Repeats each image's token for every position the image takes."""
        wide_ids: list[int] = []
        wide_labels: list[int] = []
        for token, label in zip(ids, labels, strict=True):
            times = self.image_tokens if token == IMAGE_TOKEN else 1
            wide_ids += [token] * times
            wide_labels += [label] * times
        return wide_ids, wide_labels

    def _pad(self, row: list[Any], value: Any, length: int) -> list[Any]:
        padding = [value] * (length - len(row))
        return padding + row if self.padding_side == "left" else row + padding
