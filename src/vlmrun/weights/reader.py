"""Tensors on disk, read one at a time or a few rows at a time."""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from vlmrun import regular
from vlmrun.errors import CheckpointError, suggest
from vlmrun.model.pretrained import read_json, said
from vlmrun.weights.pickle_file import AGAIN, reading, table, unreadable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # names that configs use
INDEX = "model.safetensors.index.json"
# Files and their indexes, in the order they are looked for.
_USUAL = (
    ("model.safetensors", INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.safetensors", "adapter_model.safetensors.index.json"),
    ("adapter_model.bin", "adapter_model.bin.index.json"),
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that configs use for a type."""
    return next(name for name, known in DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class _Place:
    """Where the numbers of a tensor lie."""

    descriptor: int
    begin: int
    dtype: torch.dtype


class Reader:
    """The tensors of a folder, whatever files they lie in, read one by one.

    Understands single and sharded safetensors, and `pytorch_model*.bin` (with `weights_only`, so a file cannot run
    code). Every shard's header is checked at once: a torn or missing shard is found before work starts. Several threads
    may read at once.

    Raises:
        CheckpointError: when there are no weights, or a file is missing, torn or not what it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._places: dict[str, _Place] = {}
        self._heads: dict[Path, tuple[int, int, dict[str, Any]]] = {}  # descriptor, where numbers begin, header
        self._opening = threading.Lock()
        for shard, names in self._find():
            held = set(self._handle(shard).keys())
            for name in held if names is None else names:
                if name not in held:
                    raise CheckpointError(f"tensor {name!r} is not in its shard", str(shard), AGAIN)
                self._shards[name] = shard

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(self._open)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._shards)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        handle = self._handle(self._shard(name))
        return tuple(handle[name].shape if isinstance(handle, dict) else handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, from the header."""
        handle = self._handle(self._shard(name))
        if isinstance(handle, dict):
            found: torch.dtype = handle[name].dtype
            return found
        code = handle.get_slice(name).get_dtype()
        if code not in _DTYPES:
            raise CheckpointError(f"tensor {name!r} has the type {code}, which is not handled", str(self.folder), "")
        return _DTYPES[code]

    def get(self, name: str) -> torch.Tensor:
        """Reads one tensor."""
        shard = self._shard(name)
        handle = self._handle(shard)
        with reading(shard):
            tensor: torch.Tensor = handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return tensor

    def flat(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor in memory order, read and not mapped: no more than asked for."""
        shard = self._shard(name)
        handle = self._handle(shard)
        if isinstance(handle, dict):
            with reading(shard):
                whole: torch.Tensor = handle[name]
                return whole.reshape(-1)[start:stop].clone()
        place = self._places.get(name) or self._place(name)
        if start == stop:
            return torch.empty(0, dtype=place.dtype)
        wanted = np.empty((stop - start) * place.dtype.itemsize, np.uint8)
        view, at = wanted.data, place.begin + start * place.dtype.itemsize
        while len(view):
            try:
                read = os.preadv(place.descriptor, [view], at)
            except OSError as error:
                raise unreadable(error, shard) from error
            if not read:
                raise unreadable(EOFError(f"the file ends within {name!r}"), shard)
            view, at = view[read:], at + read
        return torch.from_numpy(wanted).view(place.dtype)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor, read and not mapped; a scalar is one row."""
        handle = self._handle(self._shard(name))
        if isinstance(handle, dict):
            tensor: torch.Tensor = handle[name] if handle[name].dim() else handle[name].view(1)
            return tensor[start:stop].clone()
        shape = self.shape(name)[1:]
        width = math.prod(shape)
        return self.flat(name, start * width, stop * width).reshape(stop - start, *shape)

    def numel(self, name: str) -> int:
        """Number of elements of a tensor, from the header."""
        return math.prod(self.shape(name))

    def _place(self, name: str) -> _Place:
        """Where in which file a tensor begins; that the header is sound was checked when the file was opened."""
        shard = self._shard(name)
        with self._opening, reading(shard):
            if shard not in self._heads:
                with shard.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    head = json.loads(file.read(min(length, os.fstat(file.fileno()).st_size)))
                    descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, descriptor)
                self._heads[shard] = descriptor, 8 + length, head
            descriptor, begin, head = self._heads[shard]
            opened, found = self._handle(shard).get_slice(name), head.get(name) or {}
            if (found.get("dtype"), found.get("shape")) != (opened.get_dtype(), opened.get_shape()):
                raise ValueError("the file was changed while it was open")
            self._places[name] = _Place(descriptor, begin + found["data_offsets"][0], self.dtype(name))
        return self._places[name]

    def _shard(self, name: str) -> Path:
        if name not in self._shards:
            near = suggest(name, self._shards, noun="tensors") if len(self._shards) < 50 else "see the folder's index"
            raise CheckpointError(f"no tensor {name!r}", str(self.folder), near)
        return self._shards[name]

    def _find(self) -> Iterator[tuple[Path, list[str] | None]]:
        """Shards with the names the index gives them; None: whatever they hold."""
        for single, index in _USUAL:
            if (self.folder / index).is_file():
                yield from _read_index(self.folder / index).items()
                return
            if (self.folder / single).is_file():
                yield self.folder / single, None
                return
        others = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        if len(others) != 1:
            raise CheckpointError(
                "there are no weights in this folder",
                str(self.folder),
                "it needs model.safetensors, or shards with an index",
            )
        yield others[0], None

    def _handle(self, shard: Path) -> Any:
        if shard not in self._open:
            regular.require(shard)
            with reading(shard):
                self._open[shard] = table(shard) if shard.suffix == ".bin" else safe_open(shard, framework="pt")
        return self._open[shard]


def _read_index(path: Path) -> dict[Path, list[str]]:
    """Tensor names by shard."""
    try:
        pairs = list(read_json(path, AGAIN)["weight_map"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the index cannot be read: {said(error)}", str(path), AGAIN) from error
    shards: dict[Path, list[str]] = {}
    for name, file in pairs:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"the index puts {name!r} outside its folder: {file!r}", str(path), AGAIN)
        shards.setdefault(path.parent / file, []).append(name)
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"shard {shard.name} is missing", str(path.parent), AGAIN)
    return shards
