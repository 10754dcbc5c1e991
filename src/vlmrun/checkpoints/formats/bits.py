"""Weights in few bits as bitsandbytes writes them: read back to what it computes with, and packed.

Reading needs torch alone: a block's scale times the value its code stands for. Packing is bitsandbytes' own.

Source:
    bitsandbytes 0.50.2 functional.py (QuantState.as_dict, int8_vectorwise_quant); arXiv:2305.14314, arXiv:2208.07339
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vlmrun.checkpoints.formats.base import Lazy, lazy
from vlmrun.checkpoints.tensors import Reader
from vlmrun.errors import CheckpointError

_STATE = ".quant_state.bitsandbytes__"
_SCALES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def tensors_of(folder: Path) -> dict[str, Lazy]:
    """All tensors of a Hugging Face folder; those in few bits as bitsandbytes computes with them."""
    reader = Reader(folder)
    found = {name: lazy(reader, name) for name in reader.names()}
    four = {name.partition(_STATE)[0]: name for name in found if _STATE in name}
    eight = [name.removesuffix(".SCB") + ".weight" for name in found if name.endswith(".SCB")]
    for name, state in four.items():
        parts = {key: found.pop(f"{name}.{key}") for key in _SCALES if f"{name}.{key}" in found}
        found[name] = _four(found[name], _parsed(found.pop(state), folder), parts)
    for name in eight:
        stem = name.removesuffix("weight")
        found.pop(stem + "weight_format", None)
        found[name] = _eight(found[name], found.pop(stem + "SCB"), _dtype(folder))
    return found


def is_packed(folder: Path) -> bool:
    """Whether tensors of the folder are in few bits."""
    return any(_STATE in name or name.endswith(".SCB") for name in Reader(folder).names())


def pack(name: str, weight: torch.Tensor, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that stand for one linear layer's weight: nf4 with quantised scales, or 8 bits with a scale a row."""
    if bits == 8:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(weight.half())
        stem = name.removesuffix("weight")
        yield from ((name, codes), (stem + "SCB", scales), (stem + "weight_format", torch.zeros((), dtype=torch.uint8)))
        return
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    yield name, codes
    yield from ((f"{name}.{key}", value) for key, value in state.as_dict(packed=True).items())


def _four(codes: Lazy, state: dict[str, Any], parts: dict[str, Lazy]) -> Lazy:
    dtype = getattr(torch, state["dtype"])

    def load() -> torch.Tensor:
        packed = codes.load().flatten()
        numbers = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
        blocks = parts["quant_map"].load()[numbers].view(-1, state["blocksize"])
        return (blocks * _scales(state, parts)[:, None]).to(dtype).view(state["shape"])

    return Lazy(tuple(state["shape"]), dtype, load)


def _scales(state: dict[str, Any], parts: dict[str, Lazy]) -> torch.Tensor:
    absmax = parts["absmax"].load()
    if "nested_absmax" not in parts:
        return absmax.float()
    size = state["nested_blocksize"]
    nested = parts["nested_absmax"].load().repeat_interleave(size)[: len(absmax)]
    return parts["nested_quant_map"].load()[absmax.long()] * nested + state["nested_offset"]


def _eight(codes: Lazy, scales: Lazy, dtype: torch.dtype) -> Lazy:
    def load() -> torch.Tensor:
        return (codes.load().float() * scales.load().float().view(-1, 1) / 127).to(dtype)

    return Lazy(codes.shape, dtype, load)


def _parsed(state: Lazy, folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(bytes(state.load().tolist()))
        if torch.Size(values["shape"]).numel() % values["blocksize"]:
            raise ValueError(f"{values['shape']} is no whole number of blocks of {values['blocksize']}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the description of packed weights cannot be read: {error}", str(folder), "fetch or make it again"
        ) from error
    return values


def _dtype(folder: Path) -> torch.dtype:
    """The type that 8-bit layers compute in, which only the configuration knows."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    name = values.get("dtype") or values.get("torch_dtype") or "float16"
    return getattr(torch, str(name))  # type: ignore[no-any-return]
