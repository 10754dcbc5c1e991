"""What was computed before and may be asked for again, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlmrun.serve.rows import KeysAndValues

Key = Sequence[int | bytes]  # token ids; an image position is its image's digest


class Features:
    """Features of images by the images' content.

    Args:
        n_bytes: what is kept at most.
    """

    def __init__(self, n_bytes: int) -> None:
        self.room = n_bytes
        self._kept: OrderedDict[Any, torch.Tensor] = OrderedDict()
        self._held = 0
        self.hits = self.misses = 0

    def get(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The features under `key`, made if they are not here."""
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self.misses += 1
        made = make()
        self._kept[key] = made
        self._held += made.nbytes
        while self._held > self.room and self._kept:
            self._held -= self._kept.popitem(last=False)[1].nbytes
        return made


@dataclass(frozen=True)
class _Known:
    key: list[int | bytes]
    layers: KeysAndValues

    @property
    def n_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class Prefixes:
    """Keys and values of prompts and conversations, so that the next turn begins where the last one ended.

    Args:
        n_bytes: what is kept at most; 0 keeps nothing.
    """

    def __init__(self, n_bytes: int) -> None:
        self.room = n_bytes
        self._known: list[_Known] = []  # the most recently used last
        self.reused = 0  # tokens

    def find(self, key: Key) -> tuple[int, KeysAndValues | None]:
        """How many first tokens are known, all but one at most, and their keys and values (views)."""
        best, length = None, 0
        for known in self._known:
            n = _common(known.key, key)
            if n > length:
                best, length = known, n
        length = min(length, len(key) - 1)
        if best is None or length < 1:
            return 0, None
        self._known.remove(best)
        self._known.append(best)
        self.reused += length
        return length, [(keys[:, :, :length], values[:, :, :length]) for keys, values in best.layers]

    def keep(self, key: Key, layers: KeysAndValues) -> None:
        """Copies what was computed for `key`; replaces what it begins with."""
        size = sum(keys.nbytes + values.nbytes for keys, values in layers)
        if size > self.room:
            return
        whole = list(key)
        if any(known.key[: len(whole)] == whole for known in self._known):
            return
        self._known = [known for known in self._known if known.key != whole[: len(known.key)]]
        self._known.append(_Known(whole, [(keys.clone(), values.clone()) for keys, values in layers]))
        held = sum(known.n_bytes for known in self._known)
        while held > self.room:
            held -= self._known.pop(0).n_bytes


def _common(first: Key, second: Key) -> int:
    n = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        n += 1
    return n
