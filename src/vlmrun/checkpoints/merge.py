"""Folds a LoRA adapter into its LLM, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.checkpoints import files
from vlmrun.checkpoints.adapter import Adapter, Base, trained_base
from vlmrun.checkpoints.load import describe, weights_folder
from vlmrun.checkpoints.native import DESCRIPTION
from vlmrun.checkpoints.tensors import DTYPES, Reader, Writer
from vlmrun.errors import CheckpointError

Report = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """A report that nobody hears."""


def merge_lora(source: Path, destination: Path, *, dtype: str = "keep", report: Report = silent) -> dict[str, Any]:
    """Writes a weights folder whose LLM is base + adapter; everything else is linked or copied unchanged.

    The base is what the adapter was trained on: for a `qlora` stage the weights in few bits and back, so that the
    result, a plain model, answers as the trained one did. Merged into the full-precision weights it would not.

    Args:
        source: an artifact or weights folder with an adapter.
        dtype: `keep` each tensor's own type, or fp32, bf16, fp16 for the whole LLM. The sum is taken in fp32.

    Returns:
        `tensors` and `merged`: how many the LLM has, and how many the adapter changed; `base` when it was quantised.

    Raises:
        CheckpointError: when there is no adapter, or part of it matches no weight.
    """
    weights = weights_folder(source)
    description = describe(weights)
    if not description.get("adapter"):
        raise CheckpointError(
            "there is no adapter to merge",
            str(weights),
            "merge takes a stage that trained `llm: lora` or `qlora`; this one is whole",
        )
    reader, adapter = Reader(weights / "llm"), Adapter(weights / "adapter")
    base = trained_base(weights, description)
    with files.building(Path(destination)) as new:
        merged = _merge((reader, base, adapter), new / "llm", DTYPES.get(dtype), report)
        adapter.check_all_used()
        files.place_rest(weights / "llm", new / "llm", dtype)
        for part in ("tower", "connector"):
            files.place_tree(weights / part, new / part)
        plain = {"adapter": None, "quantized": None} | ({} if dtype == "keep" else {"dtype": dtype})
        artifact.write_json(new / DESCRIPTION, description | plain)
    kind = description.get("quantized")
    return {"tensors": len(reader.names()), "merged": merged} | (
        {"base": f"{kind['bits']} bits, dequantised"} if kind else {}
    )


def _merge(source: tuple[Reader, Base, Adapter], folder: Path, dtype: torch.dtype | None, report: Report) -> int:
    reader, base, adapter = source
    names = reader.names()
    merged = 0
    with Writer(folder) as writer:
        for done, name in enumerate(names, start=1):
            tensor = reader.get(name)
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            delta = adapter.delta(name, tuple(tensor.shape))
            bias = adapter.bias(name, tuple(tensor.shape))
            tensor = base(name, tensor) if bias is None else bias
            merged += bias is not None
            if delta is not None:
                tensor = tensor.float() + delta
                merged += 1
            writer.add(name, tensor.to(target))
            report(done, len(names), name)
    return merged
