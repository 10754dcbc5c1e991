"""What an LLM is given when a row holds several samples, so that each sees only itself."""

from __future__ import annotations

from typing import Any

import torch

from vlmrun.arch import families
from vlmrun.errors import ConfigError
from vlmrun.model import attention
from vlmrun.model.head import causal_lm


def inputs(llm: torch.nn.Module, embeds: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """Arguments of the LLM's forward pass: no mask, and positions that begin at 0 with every sample.

    From these alone transformers builds a block-diagonal mask for eager, sdpa and every attention registered with it,
    and the sequence lengths that flash attention takes; the latter of one row only, so there the rows become one.
    xformers is given where samples end, and computes them block by block.

    Shape:
        embeds [B,L,H], position_ids [B,L]; under flash attention the result has [1,B*L,H] and [1,B*L].

    Raises:
        ConfigError: for a family whose samples are not known to stay apart (`arch.families`).
    """
    config = causal_lm(llm).config.get_text_config()
    if not families.find(config.model_type).packable:
        raise ConfigError(
            f"samples of one row are not known to stay apart in {config.model_type}",
            "stage.*.packing",
            "stage.*.packing=null",
        )
    if str(config._attn_implementation).startswith("flash"):
        embeds, position_ids = embeds.flatten(0, 1).unsqueeze(0), position_ids.flatten().unsqueeze(0)
    ends = attention.packed_rows(position_ids) if config._attn_implementation == attention.NAME else {}
    return {"inputs_embeds": embeds, "attention_mask": None, "position_ids": position_ids, **ends}
