"""Keys and values of several answers under way, right-aligned in one tensor per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vlmrun.errors import CheckpointError

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # of every layer, [rows, heads, tokens, head size]

_BLOCK = 128  # tokens that room is made for at a time


class RoomyLayer(DynamicLayer):
    """A layer that grows in place: transformers' own copies all keys and values for every token.

    Layers with a sliding window are kept whole: the window is in the attention mask, which transformers makes from
    the model's configuration.
    """

    keys: torch.Tensor  # None until it is initialized, as transformers has it
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        if keys is not None and values is not None:
            self._take(keys, values, keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts new tokens behind those that are there, and gives all."""
        if not self.is_initialized:
            self._take(key_states, value_states, key_states.shape[-2])
            return self.keys, self.values
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self._room[0].shape[-2]:
            self._take(self.keys, self.values, end)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def _take(self, keys: torch.Tensor, values: torch.Tensor, needed: int) -> None:
        """Copies into new room for `needed` tokens and some more."""
        length = keys.shape[-2]
        size = (needed // _BLOCK + 1) * _BLOCK
        self._room = tuple(x.new_zeros((*x.shape[:2], size, x.shape[-1])) for x in (keys, values))
        for room, given in zip(self._room, (keys, values), strict=True):
            room[:, :, :length] = given
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = (room[:, :, :length] for room in self._room)
        self.is_initialized = True


def count_layers(llm: Any, folder: str) -> int:
    """Layers whose keys and values are kept.

    Raises:
        CheckpointError: for an LLM that remembers in another way.
    """
    layers = DynamicCache(config=llm.config.get_text_config()).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise CheckpointError(
            f"{llm.config.get_text_config().model_type} keeps more than keys and values of its tokens",
            folder,
            "export it and serve it with vLLM: vlmrun convert ARTIFACT OUT --to hf_llava",
        )
    return len(layers)


def cache_of(n_layers: int, start: KeysAndValues | None = None) -> Cache:
    """A cache that begins empty or with what is given, which is copied."""
    return Cache(layers=[RoomyLayer(*pair) for pair in start] if start else [RoomyLayer() for _ in range(n_layers)])


def taken(cache: Cache, row: int, length: int) -> KeysAndValues:
    """The last `length` tokens of a row, as views."""
    rows = slice(row, row + 1)
    layers = cast(list[RoomyLayer], cache.layers)  # as `cache_of` and `joined` make them
    return [(layer.keys[rows, :, -length:], layer.values[rows, :, -length:]) for layer in layers]


def joined(parts: Sequence[KeysAndValues]) -> Cache:
    """One cache of several rows, which end together; shorter ones have zeros before them."""
    return Cache(layers=[RoomyLayer(*pair) for pair in stacked(parts)])


def stacked(parts: Sequence[KeysAndValues]) -> KeysAndValues:
    """Several rows in one, as `joined`."""
    longest = max(part[0][0].shape[-2] for part in parts)

    def whole(layer: int, which: int) -> torch.Tensor:
        tensors = [part[layer][which] for part in parts]
        first = tensors[0]
        made = first.new_zeros((sum(len(t) for t in tensors), first.shape[1], longest, first.shape[3]))
        at = 0
        for tensor in tensors:
            made[at : at + len(tensor), :, longest - tensor.shape[-2] :] = tensor
            at += len(tensor)
        return made

    return [(whole(layer, 0), whole(layer, 1)) for layer in range(len(parts[0]))]
