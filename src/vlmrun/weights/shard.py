"""One safetensors file whose tensors are filled in side by side, and how tensors are divided among such files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from vlmrun.weights.blocks import Shape
from vlmrun.weights.file import Output
from vlmrun.weights.reader import CODES

Types = Mapping[str, tuple[torch.dtype, Shape]]  # of every tensor that a file will hold


class Shard(Output):
    """A safetensors file whose tensors are filled in side by side.

    Args:
        tensors: type, shape and bytes of each, in the order in which they lie in it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, Shape, int]]) -> None:
        header = _header(tensors)
        self.places: dict[str, tuple[int, int]] = {}  # first and last (exclusive) byte
        self.filled: dict[str, int] = {}  # of a tensor that is being written, where the next slice begins
        self.size = len(header)
        for name, (_, _, size) in tensors.items():
            self.places[name] = self.size, self.size + size
            self.size += size
        super().__init__(path, self.size)
        self._header = header

    def open(self) -> None:
        """Begins it with its header."""
        super().open()
        self.write(memoryview(self._header), 0)


def in_shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names by shard, in order; one empty shard when there is nothing."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _header(tensors: Mapping[str, tuple[torch.dtype, Shape, int]]) -> bytes:
    """The head of a safetensors file. Source: huggingface/safetensors README, "Format"."""
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        head[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
