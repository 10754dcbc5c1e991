"""Features of a frozen tower, computed once for every image and kept on disk for later epochs, ranks and runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrun import logs
from vlmrun.model.feature_shards import KEY_BYTES, FeatureShards
from vlmrun.model.towers.base import Tower

log = logs.get(__name__)

_SUMS = 4  # of 64 bits each, of which a key is made
_VERSION = 1


class TowerCache:
    """Answers for a tower where it has seen the same pixels before.

    A batch that holds one image that is not known goes through the tower whole, as it would without a cache: how many
    images a kernel is given together can change last bits. All that features depend on is part of a name, so a cache
    never answers for another tower, type, device or way of computing.

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
        if rows is not None:
            self.n_read += len(rows)
            return _unpacked(rows, shards.described, pixels.device)
        self.n_computed += len(keys)
        layers: list[torch.Tensor] = tower(pixels)
        described = [str(layers[0].dtype).removeprefix("torch."), [list(layer.shape[1:]) for layer in layers]]
        for key, packed in zip(keys, _packed(layers), strict=True):
            shards.add(key, packed, described)
        return layers

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
        known = json.dumps([self._identity, str(pixels.dtype), autocast, device, torch.__version__])
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
        _VERSION, type(tower).__qualname__, tower.config_dict(), list(tower.layers), tower.image_size, tower.n_patches,
        tower.hidden_dim, computed,
    ]  # fmt: skip
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _packed(layers: Sequence[torch.Tensor]) -> list[bytes]:
    """The rows of all images, all layers of one together."""
    flat = torch.cat([layer.flatten(1) for layer in layers], dim=1).cpu().contiguous()
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]


def _unpacked(rows: Sequence[bytes], described: Any, device: torch.device) -> list[torch.Tensor]:
    dtype, shapes = described
    data = torch.frombuffer(bytearray(b"".join(rows)), dtype=getattr(torch, dtype)).view(len(rows), -1).to(device)
    sizes = [n_patches * width for n_patches, width in shapes]
    return [layer.reshape(len(rows), *shape) for layer, shape in zip(data.split(sizes, dim=1), shapes, strict=True)]
