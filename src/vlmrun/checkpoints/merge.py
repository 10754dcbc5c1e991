"""Folds a LoRA adapter into its LLM, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.checkpoints import files
from vlmrun.checkpoints.adapter import Adapter
from vlmrun.checkpoints.load import describe, weights_folder
from vlmrun.checkpoints.native import DESCRIPTION
from vlmrun.checkpoints.tensors import DTYPES, Reader, Writer
from vlmrun.errors import CheckpointError

Report = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """A report that nobody hears."""


def merge_lora(source: Path, destination: Path, *, dtype: str = "keep", report: Report = silent) -> dict[str, Any]:
    """Writes a weights folder whose LLM is base + adapter; everything else is linked or copied unchanged.

    Args:
        source: an artifact or weights folder with an adapter.
        dtype: `keep` each tensor's own type, or fp32, bf16, fp16 for the whole LLM. The sum is taken in fp32.

    Returns:
        `tensors` and `merged`: how many the LLM has, and how many of them changed.

    Raises:
        CheckpointError: when there is no adapter, or part of it matches no weight.
    """
    weights = weights_folder(source)
    description = describe(weights)
    if not description.get("adapter"):
        raise CheckpointError(
            "there is no adapter to merge",
            str(weights),
            "merge takes a stage that trained `llm: lora`; this one is whole",
        )
    reader, adapter = Reader(weights / "llm"), Adapter(weights / "adapter")
    with files.building(Path(destination)) as new:
        merged = _merge(reader, adapter, new / "llm", DTYPES.get(dtype), report)
        adapter.check_all_used()
        files.place_rest(weights / "llm", new / "llm", dtype)
        for part in ("tower", "connector"):
            files.place_tree(weights / part, new / part)
        description |= {"adapter": None} | ({} if dtype == "keep" else {"dtype": dtype})
        artifact.write_json(new / DESCRIPTION, description)
    return {"tensors": len(reader.names()), "merged": merged}


def _merge(reader: Reader, adapter: Adapter, folder: Path, dtype: torch.dtype | None, report: Report) -> int:
    names = reader.names()
    merged = 0
    with Writer(folder) as writer:
        for done, name in enumerate(names, start=1):
            tensor = reader.get(name)
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            delta = adapter.delta(name, tuple(tensor.shape))
            if delta is not None:
                tensor = tensor.float() + delta
                merged += 1
            writer.add(name, tensor.to(target))
            report(done, len(names), name)
    return merged
