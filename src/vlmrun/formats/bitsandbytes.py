"""Quantized weights as bitsandbytes writes them: read back to what it computes with, and packed.

Reading needs torch alone: a block's scale times the value its code stands for. Packing is bitsandbytes' own.

Source:
    bitsandbytes 0.50.2 functional.py (QuantState.as_dict, int8_vectorwise_quant); arXiv:2305.14314, arXiv:2208.07339
"""

from __future__ import annotations

import json
import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlmrun.errors import CheckpointError
from vlmrun.weights.blocks import Shape
from vlmrun.weights.lazy import Lazy, lazy, whole
from vlmrun.weights.reader import Reader

_STATE = ".quant_state.bitsandbytes__"
_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a scale, and scales that do, as bitsandbytes takes them
_STATE_BYTES = 256  # room for the description of a packed weight, of about 170 bytes
_SCALES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def tensors_of(folder: Path) -> dict[str, Lazy]:
    """All tensors of a Hugging Face folder; quantized ones as bitsandbytes computes with them."""
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
    """Whether tensors of the folder are quantized."""
    return any(_STATE in name or name.endswith(".SCB") for name in Reader(folder).names())


def pack(name: str, weight: Lazy, bits: int) -> dict[str, Lazy]:
    """The tensors that stand for one linear layer's weight: nf4 with quantized scales, or 8 bits with a scale a row.

    They are made together when the first of them is read, and each is let go when it has been.
    """
    held: dict[str, torch.Tensor] = {}
    making = threading.Lock()

    def take(key: str) -> torch.Tensor:
        with making:
            if key not in held:
                held.update((_packed_8 if bits == 8 else _packed_4)(name, weight.load()))
            return held.pop(key)

    kinds = (_kinds_8 if bits == 8 else _kinds_4)(name, weight.shape)
    return {key: whole(shape, dtype, partial(take, key)) for key, (dtype, shape) in kinds.items()}


def _kinds_8(name: str, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
    stem = name.removesuffix("weight")
    return {
        name: (torch.int8, shape),
        f"{stem}SCB": (torch.float32, shape[:1]),
        f"{stem}weight_format": (torch.uint8, ()),
    }


def _packed_8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, scales, _ = int8_vectorwise_quant(weight.half())
    stem = name.removesuffix("weight")
    return {name: codes, f"{stem}SCB": scales, f"{stem}weight_format": torch.zeros((), dtype=torch.uint8)}


def _kinds_4(name: str, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
    n_scales = -(-math.prod(shape) // _BLOCK)
    return {
        name: (torch.uint8, (-(-math.prod(shape) // 2), 1)),
        f"{name}.absmax": (torch.uint8, (n_scales,)),
        f"{name}.quant_map": (torch.float32, (16,)),
        f"{name}.nested_absmax": (torch.float32, (-(-n_scales // _NESTED_BLOCK),)),
        f"{name}.nested_quant_map": (torch.float32, (256,)),
        f"{name}{_STATE}nf4": (torch.uint8, (_STATE_BYTES,)),
    }


def _packed_4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=_BLOCK, quant_type="nf4", compress_statistics=True)
    found = {name: codes} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    # How long its JSON is depends on a number in it: spaces at the end, so that it is known before.
    said = found[f"{name}{_STATE}nf4"]
    found[f"{name}{_STATE}nf4"] = torch.nn.functional.pad(said, (0, _STATE_BYTES - len(said)), value=ord(" "))
    return found


def _four(codes: Lazy, state: dict[str, Any], parts: dict[str, Lazy]) -> Lazy:
    dtype, shape, size = getattr(torch, state["dtype"]), tuple(state["shape"]), state["blocksize"]
    width = math.prod(shape[1:])

    def rows(start: int, stop: int) -> torch.Tensor:
        first, last = start * width // size, -(-stop * width // size)  # blocks that share a scale
        packed = codes.flat(first * size // 2, last * size // 2)
        numbers = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
        blocks = parts["quant_map"].load()[numbers].view(-1, size)
        values = (blocks * _scales(state, parts, first, last)[:, None]).to(dtype).flatten()
        return values[start * width - first * size :][: (stop - start) * width].view(-1, *shape[1:])

    return Lazy(shape, dtype, rows)


def _scales(state: dict[str, Any], parts: dict[str, Lazy], first: int, last: int) -> torch.Tensor:
    absmax = parts["absmax"].flat(first, last)
    if "nested_absmax" not in parts:
        return absmax.float()
    nested = parts["nested_absmax"].load()[torch.arange(first, last) // state["nested_blocksize"]]
    scales: torch.Tensor = parts["nested_quant_map"].load()[absmax.long()] * nested + state["nested_offset"]
    return scales


def _eight(codes: Lazy, scales: Lazy, dtype: torch.dtype) -> Lazy:
    def rows(start: int, stop: int) -> torch.Tensor:
        return (codes.rows(start, stop).float() * scales.flat(start, stop).float().view(-1, 1) / 127).to(dtype)

    return Lazy(codes.shape, dtype, rows)


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
