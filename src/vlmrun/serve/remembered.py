"""What was computed before and may be asked for again, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
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


@dataclass(frozen=True, eq=False)
class _Known:
    key: list[int | bytes]
    layers: KeysAndValues
    marks: list[int]  # of `key`, as `_marks` makes them
    n_bytes: int


class Prefixes:
    """Keys and values of prompts and conversations, so that the next turn begins where the last one ended.

    Every beginning of what is known is found by its mark, in a time that does not grow with what is known.

    Args:
        n_bytes: what is kept at most; 0 keeps nothing.
    """

    def __init__(self, n_bytes: int) -> None:
        self.room = n_bytes
        self._known: OrderedDict[_Known, None] = OrderedDict()  # the most recently used last
        self._begins: dict[int, _Known] = {}  # mark -> the most recently used that begins so
        self._held = 0
        self.reused = 0  # tokens

    def find(self, key: Key) -> tuple[int, KeysAndValues | None]:
        """How many first tokens are known, all but one at most, and their keys and values (views)."""
        for mark in reversed(_marks(key[:-1])):
            known = self._begins.get(mark)
            if known is not None:
                length = min(common(known.key, key), len(key) - 1)
                self._use(known)
                self.reused += length
                return length, [(keys[:, :, :length], values[:, :, :length]) for keys, values in known.layers]
        return 0, None

    def keep(self, key: Key, layers: KeysAndValues) -> None:
        """Copies what was computed for `key`; replaces what it begins with."""
        size = sum(keys.nbytes + values.nbytes for keys, values in layers)
        marks = _marks(key)
        if size > self.room or marks[-1] in self._begins:
            return
        for length, mark in enumerate(marks, start=1):
            known = self._begins.get(mark)
            if known is not None and len(known.key) == length:
                self._forget(known)
        copies = [(keys.clone(), values.clone()) for keys, values in layers]
        self._use(_Known(list(key), copies, marks, size))
        self._held += size
        while self._held > self.room:
            self._forget(next(iter(self._known)))

    def _use(self, known: _Known) -> None:
        self._known[known] = None
        self._known.move_to_end(known)
        self._begins.update(dict.fromkeys(known.marks, known))

    def _forget(self, known: _Known) -> None:
        del self._known[known]
        self._held -= known.n_bytes
        for mark in known.marks:
            if self._begins[mark] is known:
                del self._begins[mark]


def _marks(key: Key) -> list[int]:
    """A hash of every beginning of `key`, the shortest first."""
    return list(accumulate(key, lambda mark, token: hash((mark, token)), initial=0))[1:]


def common(first: Key, second: Key) -> int:
    """First tokens that two prompts share."""
    n = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        n += 1
    return n
