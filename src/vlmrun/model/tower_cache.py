"""Features of a frozen tower, computed once for every image and kept on disk for later epochs, ranks and runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from vlmrun import logs
from vlmrun.model.feature_shards import KEY_BYTES, FeatureShards
from vlmrun.model.towers.base import Tower

log = logs.get(__name__)

_SUMS = 4  # of 64 bits each, of which a key is made
_VERSION = 1


class TowerCache:
    """Answers for a tower where it has seen the same pixels before.

    Each image that is not known goes through the tower alone: how many a kernel is given together can change last bits,
    and those of a training run must not depend on what was known before, or a resumed run would differ. All that
    features depend on is part of a name, so a cache never answers for another tower, type, device or way of computing.

    Args:
        folder: of the caches of all towers.
        computed: what else decides about bits, such as the kind of attention, as JSON values.

    Attributes:
        n_read: images that were answered for.
        n_computed: images that went through the tower.
    """

    def __init__(self, folder: Path, tower: Tower, computed: Any) -> None:
        self._folder = folder
        self._identity = identity(tower, computed)
        self._opened: dict[str, FeatureShards] = {}
        self._weights: torch.Tensor | None = None
        self.n_read = self.n_computed = 0

    @torch.no_grad()
    def features(self, tower: Tower, pixels: torch.Tensor) -> list[torch.Tensor]:
        """What `tower(pixels)` gives.

        Shape:
            pixels [S, 3, H, W], in the tower's type; result: one [S, P, Dv] for each requested layer
        """
        shards = self._shards(pixels)
        keys = self._keys(pixels)
        rows = shards.all(keys)
        for number, key in enumerate(keys):
            if rows[number] is None:
                rows[number] = shards.get(key)  # as an image of this batch may be there twice
            if rows[number] is None:
                layers = tower(pixels[number : number + 1])
                row = rows[number] = _packed(layers)
                shards.add(key, row, _described(layers))
                self.n_computed += 1
            else:
                self.n_read += 1
        return _unpacked([row for row in rows if row is not None], shards.described, pixels.device)

    def close(self) -> None:
        """Says what it was good for, and closes its files."""
        log.info("tower cache %s: %d images read, %d computed", self._folder, self.n_read, self.n_computed)
        for shards in self._opened.values():
            shards.close()
        self._opened = {}

    def _shards(self, pixels: torch.Tensor) -> FeatureShards:
        """Of the way in which features would be computed now."""
        kind = pixels.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        device = torch.cuda.get_device_name(pixels.device) if kind == "cuda" else kind
        versions = [torch.__version__, transformers.__version__]
        known = json.dumps([self._identity, str(pixels.dtype), autocast, device, versions])
        name = hashlib.sha256(known.encode()).hexdigest()[:32]
        if name not in self._opened:
            self._opened[name] = FeatureShards(self._folder / name)
        return self._opened[name]

    def _keys(self, pixels: torch.Tensor) -> list[bytes]:
        """One for every image, computed where the pixels are: they need not come back from a GPU.

        Sums of products of all 16-bit pieces with random numbers of 64 bits: two images that differ at all have the
        same one with a probability below 2 ** -47, and there are four.
        """
        pieces = pixels.contiguous().view(torch.int16).flatten(1)  # [S, n]
        if self._weights is None or self._weights.shape[1] != pieces.shape[1] or self._weights.device != pixels.device:
            drawn = np.random.PCG64(_VERSION).random_raw(_SUMS * pieces.shape[1]).view(np.int64)
            self._weights = torch.from_numpy(drawn.reshape(_SUMS, -1)).to(pixels.device)
        sums = torch.stack([(pieces * weights).sum(dim=1) for weights in self._weights], dim=1)  # [S, 4] modulo 2 ** 64
        shape = json.dumps(list(pixels.shape[1:])).encode()
        return [hashlib.sha256(shape + row.tobytes()).digest()[:KEY_BYTES] for row in sums.cpu().numpy()]


def identity(tower: Tower, computed: Any) -> str:
    """A digest of all that decides what a tower makes of pixels: its class, config, layers and weights."""
    digest = hashlib.sha256()
    about = [
        _VERSION, type(tower).__qualname__, _source(type(tower)), tower.config_dict(), list(tower.layers),
        tower.image_size, tower.n_patches, tower.hidden_dim, computed,
    ]  # fmt: skip
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _source(tower: type[Tower]) -> str:
    """Digest of the files that a tower's classes are written in: their next version may compute otherwise."""
    files = {file for one in tower.__mro__ if (file := inspect.getsourcefile(one) if one is not object else None)}
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files))).hexdigest()


def _described(layers: Sequence[torch.Tensor]) -> list[Any]:
    """Type and shape of one image's features, for each layer."""
    return [[str(layer.dtype).removeprefix("torch."), list(layer.shape[1:])] for layer in layers]


def _packed(layers: Sequence[torch.Tensor]) -> bytes:
    """The features of one image, layer after layer."""
    return b"".join(layer.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes() for layer in layers)


def _unpacked(rows: Sequence[bytes], described: list[Any], device: torch.device) -> list[torch.Tensor]:
    """One tensor for each layer, of all images."""
    data = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
    layers, begin = [], 0
    for name, shape in described:
        dtype: torch.dtype = getattr(torch, name)
        end = begin + math.prod(shape) * dtype.itemsize
        piece = data[:, begin:end].contiguous().to(device).view(dtype)
        layers.append(piece.view(len(rows), *shape))
        begin = end
    return layers
