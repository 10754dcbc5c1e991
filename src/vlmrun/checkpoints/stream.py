"""Tensors written slice by slice: shapes are known before, so a header goes first and nothing waits in memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from vlmrun.checkpoints.tensors import CODES, Written, failing, publish

SLICE = 1 << 18  # elements of one tensor that are worked on at a time: what a processor's cache holds

Report = Callable[[int, int, str], None]
Shape = tuple[int, ...]


def silent(done: int, total: int, what: str) -> None:
    """A report that nobody hears."""


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of every block of a tensor that is worked on at a time; a scalar is one row."""
    n_rows, step = (shape[0] if shape else 1), max(1, SLICE // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


class SliceWriter:
    """Writes the tensors of a folder as `model.safetensors`, or as shards with an index, a slice at a time.

    Like `tensors.Writer` it names its files last and leaves none on failure, but it is told every tensor beforehand and
    holds no more than the slice it is given.

    Args:
        tensors: type and shape of every tensor, in the order in which they will be written.
        max_shard_bytes: a shard is closed when the next tensor would make it larger.

    Raises:
        CheckpointError: when the disk is full or the folder cannot be written.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, tuple[torch.dtype, Shape]], max_shard_bytes: float = 5e9
    ) -> None:
        self.folder = Path(folder)
        self._sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items()}
        self._tensors = dict(tensors)
        self._shards = iter(_shards(self._sizes, max_shard_bytes))
        self._left: list[str] = []
        self._file: IO[bytes] | None = None
        self._written: list[Written] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Writes one tensor: its elements in order, in pieces of any size."""
        with self._failing():
            if not self._left:
                self._finish()
                self._begin(next(self._shards))
            assert self._file is not None
            assert self._left.pop(0) == name, f"{name} is not the tensor that was announced"
            n_bytes = 0
            for piece in pieces:
                assert piece.dtype == self._tensors[name][0], f"{name}: {piece.dtype}"
                data = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                n_bytes += data.nbytes
                self._file.write(data.data)
            assert n_bytes == self._sizes[name], f"{name}: {n_bytes} bytes, announced {self._sizes[name]}"

    def close(self) -> None:
        """Gives every file its name; all tensors must have been written."""
        assert not self._left, f"tensors were not written: {self._left[:3]}"
        with self._failing():
            self._finish()
            if not self._written:  # a part without weights is a file without tensors
                self._begin(next(self._shards))
                self._finish()
            publish(self.folder, self._written, sum(self._sizes.values()))
        rest = list(self._shards)
        assert not rest, f"tensors were not written: {rest[0][:3]}"

    def abort(self) -> None:
        """Removes what was written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for temporary, _ in self._written:
            temporary.unlink(missing_ok=True)
        self._written = []

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _begin(self, names: list[str]) -> None:
        temporary = self.folder / f".model-{len(self._written) + 1:05d}.safetensors.part"
        self._written.append((temporary, names))
        self._left = list(names)
        self._file = temporary.open("wb", buffering=0)
        self._file.write(_header({name: (*self._tensors[name], self._sizes[name]) for name in names}))

    def _finish(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        with failing(self.folder, sum(self._sizes.values()), self.abort):
            yield


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
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
