"""The tower in fp16 whatever the run's precision, as LLaVA has it when bf16 is off (`compat.fp16_tower`)."""

from __future__ import annotations

from typing import Any

import torch

from vlmrun.model.towers.base import Tower
from vlmrun.model.towers.clip import Clip

_OLD_CLIP = "vlmrun_clip_4_37"


def to_half(tower: Tower) -> None:
    """Casts the tower, and lets CLIP attend as it did then.

    transformers 4.37's CLIP scales the queries before the product and takes the softmax in fp16; today's scales after
    it and takes the softmax in fp32. In fp16 that is a unit or two in the last place: enough to part two loss curves.
    """
    tower.half()
    if isinstance(tower, Clip):
        from transformers import AttentionInterface

        AttentionInterface.register(_OLD_CLIP, _attend)
        tower.model.config._attn_implementation = _OLD_CLIP


def _attend(  # noqa: PLR0913  (the library's signature)
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [B, heads, T, D] without a mask, as images have it."""
    assert attention_mask is None, "an image has no padding"
    weights = torch.softmax((query * scaling) @ key.transpose(-1, -2), dim=-1)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
