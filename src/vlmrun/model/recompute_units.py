"""Gradient checkpointing of several blocks as one unit, which keeps its input alone.

The first block of a unit runs all of them inside one checkpoint; the others hand on what they are given. Their own
modules run as always, so what hangs on those (adapters, ZeRO-3's gathering) is not touched.

Source: Megatron-LM's --recompute-granularity full --recompute-method uniform --recompute-num-layers n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vlmrun.errors import ConfigError


def group(llm: nn.Module, n: int) -> None:
    """Makes units of n blocks of an LLM whose gradient checkpointing is on; the last one may be smaller.

    Raises:
        ConfigError: when its blocks are not known to take the same arguments.
    """
    blocks = _blocks(llm)
    kinds = set(getattr(llm.config, "layer_types", None) or ["the same"])
    if not blocks or len(kinds) > 1:
        what = "its blocks are of several kinds" if blocks else "its blocks are not those of transformers"
        raise ConfigError(f"{what}: they cannot be recomputed together", "stage.*.gradient_checkpointing", "true")
    for first in range(0, len(blocks), n):
        _Unit(blocks[first : first + n])


def _blocks(llm: nn.Module) -> list[Any]:
    lists = (module for module in llm.modules() if isinstance(module, nn.ModuleList))
    found = next((list(each) for each in lists if all(hasattr(block, "gradient_checkpointing") for block in each)), [])
    return found


class _Unit:
    """Blocks that are run, and recomputed, by the first of them."""

    def __init__(self, blocks: list[Any]) -> None:
        self._first = blocks[0]
        self._own: list[Callable[..., Any]] = [block.forward for block in blocks]
        self._together = False
        for place, block in enumerate(blocks):
            block.gradient_checkpointing = False
            block.forward = self._lead if place == 0 else partial(self._follow, place)

    def _lead(self, hidden: Any, *arguments: Any, **named: Any) -> Any:
        self._together = bool(self._first.training)
        if not self._together:
            return self._own[0](hidden, *arguments, **named)
        # Keys and values are not kept: recomputing would add them twice.
        named |= {key: None for key in ("past_key_values", "use_cache") if key in named}
        return self._first._gradient_checkpointing_func(partial(self._run, **named), hidden, *arguments)

    def _run(self, hidden: Any, *arguments: Any, **named: Any) -> Any:
        for own in self._own:
            hidden = own(hidden, *arguments, **named)
        return hidden

    def _follow(self, place: int, hidden: Any, *arguments: Any, **named: Any) -> Any:
        return hidden if self._together else self._own[place](hidden, *arguments, **named)
