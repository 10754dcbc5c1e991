"""xformers as an attention of transformers: for the LLM and for the vision tower, on GPUs that have no flash attention.

transformers asks for two functions by name: one makes a mask out of what a batch looks like, once per forward pass, the
other computes attention with it, once per layer. `ready` registers ours under `xformers`. eager, sdpa and
flash_attention_2 are transformers' own.

Documents packed into one row are kept apart in either of two ways, and both work for every attention:

- `position_ids` that begin at 0 with each document, and no attention mask: transformers makes a mask of it (sdpa,
  eager, xformers), or cuts the row (flash attention, which takes one row per batch).
- `packed_rows(position_ids)` beside them: flash attention and xformers then compute block after block, without a mask,
  of any number of rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from vlmrun.arch.attention import INSTALL, WHERE
from vlmrun.errors import ConfigError

NAME = "xformers"
# Additive masks are read 16 bytes at a time, whatever their length.
_ALIGNED = 8
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def ready(attention: str) -> None:
    """Makes an attention known to transformers before a model asks for it. Safe to call twice.

    Raises:
        ConfigError: when its package is missing.
    """
    if attention != NAME:
        return
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"xformers cannot be imported: {error}", WHERE, f"{INSTALL}, or hardware.attention=sdpa"
        ) from error
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)


def packed_rows(position_ids: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of an LLM's forward that say where documents end, for flash attention and xformers.

    Give them beside `position_ids`, which begin at 0 with every document, and with padding. Others pass them over.

    Shape:
        position_ids [B, L]
    """
    flat = position_ids.flatten()
    ends = torch.cat([(flat == 0).nonzero().flatten(), flat.new_tensor([flat.numel()])]).to(torch.int32)
    longest = int(position_ids.max()) + 1
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def make_mask(*, attention_mask: torch.Tensor | None = None, **wanted: Any) -> torch.Tensor | None:
    """The mask of a forward pass: none where causality alone is right, else one of booleans for every pair.

    Padding at the end of rows needs no mask: no position before it may look there, and what it sees itself is not used.

    Shape:
        attention_mask [B, L]; result [B, 1, Lq, Lk]
    """
    from transformers.masking_utils import sdpa_mask

    whole = wanted["q_length"] == wanted["kv_length"] and wanted.get("q_offset", 0) == 0
    if (
        attention_mask is not None
        and whole
        and wanted.get("allow_is_causal_skip", True)
        and _ends_padded(attention_mask)
    ):
        attention_mask = None
    mask: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, **wanted)
    return mask


def attend(  # noqa: PLR0913 - the signature transformers calls
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention.

    Args:
        attention_mask: booleans that say who may look (`make_mask`), or numbers to add to the scores.
        cu_seq_lens_q: where documents end in all rows, one after another (`packed_rows`); no mask is looked at then.

    Shape:
        query [B, H, Lq, K]; key, value [B, Hkv, Lk, K]; attention_mask [B, 1 or H, Lq, Lk]; result [B, Lq, H, K]

    Raises:
        ConfigError: when xformers has no kernel for it.
    """
    for name in _UNKNOWN:
        if other.get(name) is not None:
            raise ConfigError(f"xformers cannot compute attention with {name}", WHERE, "hardware.attention=eager")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    batch, length = query.shape[0], query.shape[2]
    # xformers wants [B, L, H, K], one type, and a key head for every query head: its backward knows no groups.
    value = _repeated(value, groups).transpose(1, 2)
    key = _repeated(key, groups).transpose(1, 2).to(value.dtype)
    query = query.transpose(1, 2).to(value.dtype)
    if cu_seq_lens_q is not None:
        query, key, value = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (query, key, value))
        bias: Any = _blocks(cu_seq_lens_q, causal)
    elif attention_mask is not None:
        bias = _added(attention_mask[..., : key.shape[1]], query)
    else:
        bias = _lower_triangle() if causal and length > 1 else None
    result = _kernel(query, key, value, bias, dropout, scaling)
    return result.reshape(batch, length, *result.shape[2:]), None


def _kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any, dropout: float, scale: float | None
) -> torch.Tensor:
    """xformers itself; tests on a CPU, for which it has no kernel, put its documented formula here."""
    from xformers.ops import memory_efficient_attention

    try:
        found: torch.Tensor = memory_efficient_attention(query, key, value, attn_bias=bias, p=dropout, scale=scale)
    except NotImplementedError as error:
        name = torch.cuda.get_device_name(query.device) if query.is_cuda else "a CPU"
        kind = str(query.dtype).removeprefix("torch.")
        reasons = [line.strip() for line in str(error).splitlines() if line.startswith("    ")][5:]
        raise ConfigError(
            f"xformers has no kernel for heads of {query.shape[-1]} in {kind} on {name}: {'; '.join(reasons[:3])}",
            WHERE,
            "hardware.attention=sdpa",
        ) from error
    return found


def _repeated(heads: torch.Tensor, times: int) -> torch.Tensor:
    return heads if times == 1 else heads.repeat_interleave(times, dim=1)


def _ends_padded(mask: torch.Tensor) -> bool:
    """Whether all padding stands at the ends of rows, and every row has something before it."""
    kept = mask.bool()
    return bool((kept[:, 1:] <= kept[:, :-1]).all() & kept[:, 0].all())


def _added(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A mask as numbers to add, for every head, in memory that the kernel can read."""
    batch, length, heads, _ = query.shape
    n_keys = mask.shape[-1]
    room = -(-n_keys // _ALIGNED) * _ALIGNED
    numbers = query.new_zeros(*mask.shape[:-1], room)[..., :n_keys]
    if mask.dtype == torch.bool:
        # The lowest number, not -inf: a row that may look nowhere then averages all, as in eager, and is not nan.
        numbers = numbers.masked_fill_(~mask, torch.finfo(query.dtype).min)
    else:
        numbers.copy_(mask.clamp_min(torch.finfo(query.dtype).min))
    return numbers.expand(batch, heads, length, n_keys)


@lru_cache(maxsize=1)  # every layer of a forward pass asks with the same tensor, and its lengths come off the device
def _blocks(ends: torch.Tensor, causal: bool) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    blocks = BlockDiagonalMask.from_seqlens(ends.diff().tolist(), device=ends.device)
    return blocks.make_causal() if causal else blocks


def _lower_triangle() -> Any:
    from xformers.ops import LowerTriangularMask

    return LowerTriangularMask()
