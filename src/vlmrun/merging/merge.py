"""Folds LoRA adapters into their LLM, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmrun import artifact
from vlmrun.config.schema import AverageStage, Linear, MergeStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats.load import describe
from vlmrun.merging.average import Plan, write_part
from vlmrun.merging.compatible import differences, same_content
from vlmrun.model.pretrained import read_json
from vlmrun.names import MODEL
from vlmrun.weights import folder as files
from vlmrun.weights.adapter import Adapter, Base, fold, trained_base
from vlmrun.weights.blocks import Shape, blocks, cast
from vlmrun.weights.finite import Finite
from vlmrun.weights.native import weights_folder
from vlmrun.weights.parallel import AT_ONCE
from vlmrun.weights.reader import DTYPES, Reader
from vlmrun.weights.writer import Report, Writer, counting, silent


def merge(stage: MergeStage, sources: list[Path], destination: Path, *, report: Report = silent) -> dict[str, Any]:
    """Writes a weights folder whose LLM is base + what its adapters add; everything else is linked unchanged.

    Of several sources the changes are added with the stage's weights, and what was trained beside the adapters is
    averaged with the same weights. For a `qlora` stage the base is by default the dequantized weights, so that the
    result, a plain model, answers as the trained one did; merged into the full-precision ones it would not.

    Args:
        sources: artifacts or weights folders with an adapter each, on one base.

    Returns:
        `tensors` and `merged`: how many the LLM has, and how many the adapters changed; `base` when it was quantized.

    Raises:
        CheckpointError: when there is no adapter, part of it matches no weight, the bases differ, or a result is not
            finite.
    """
    plan = prepare(stage, sources)
    first, finite = plan.folders[0], Finite()
    with files.building(Path(destination)) as new, files.verifying(sources):
        changed = _write_llm(plan, new / "llm", report, finite)
        files.place_rest(first / "llm", new / "llm", stage.dtype)
        for part in ("tower", "connector"):
            _place_beside(plan, part, new / part, finite)
        finite.require(first)
        plain = {"adapter": None, "quantized": None} | ({} if stage.dtype == "keep" else {"dtype": stage.dtype})
        artifact.write_json(new / MODEL, describe(first) | plain)
    return {"tensors": len(plan.reader.names()), "merged": changed} | plan.base_note()


@dataclass(frozen=True)
class Merging:
    """Checked sources of a merge. Nothing has been written."""

    stage: MergeStage
    folders: list[Path]
    reader: Reader
    base: Base
    adapters: list[Adapter]

    @property
    def weights(self) -> list[float]:
        """One for each adapter."""
        return self.stage.weights or [1.0] * len(self.adapters)

    def base_note(self) -> dict[str, str]:
        """What was merged into, where there was a choice."""
        kind = describe(self.folders[0]).get("quantized")
        if not kind:
            return {}
        rounded = self.stage.base == "trained"
        return {"base": f"{kind['bits']} bits, dequantized" if rounded else "full precision, not what was trained on"}


def prepare(stage: MergeStage, sources: list[Path]) -> Merging:
    """Opens and compares the sources.

    Raises:
        CheckpointError: listing everything that a merge would lose.
    """
    folders = [weights_folder(source) for source in sources]
    bare = [folder for folder in folders if not describe(folder).get("adapter")]
    if bare:
        fix = "merge takes a stage that trained `llm: lora` or `qlora`; this one is whole"
        raise CheckpointError([Problem("there is no adapter to merge", str(folder), fix) for folder in bare])
    first, description = folders[0], describe(folders[0])
    reader, adapters = Reader(first / "llm"), [Adapter(folder / "adapter") for folder in folders]
    shapes = {name: reader.shape(name) for name in reader.names()}
    tied = "lm_head.weight" not in reader.names() and _is_tied(first)
    problems = [problem for adapter in adapters for problem in adapter.problems(shapes, tied=tied)]
    for folder in folders[1:]:
        problems += differences(first, folder)
        problems += _another_base(first, folder)
    if len(folders) > 1 and not math.isclose(sum(stage.weights or [1.0] * len(folders)), 1.0, abs_tol=1e-6):
        problems += _beside_differs(folders)
    if problems:
        raise CheckpointError(problems)
    base = trained_base(first, description) if stage.base == "trained" else Base()
    return Merging(stage, folders, reader, base, adapters)


def merged(plan: Merging, name: str) -> Iterator[Tensor]:
    """The rows of one tensor of the LLM with the adapters in them; those of a tensor they leave alone as they are."""
    shape = plan.reader.shape(name)
    width = math.prod(shape[1:])
    used = [pair for pair in zip(plan.adapters, plan.weights, strict=True) if pair[0].touches(name)]
    # Scales are quantized over a whole weight: it cannot be rounded in slices.
    whole = plan.base(name, plan.reader.get(name)) if name in plan.base.rounded else None
    for start, stop in blocks(shape):
        if whole is not None:
            rows = whole[start:stop]
        else:
            rows = plan.reader.flat(name, start * width, stop * width).view(-1, width)
        yield fold(name, rows, start, used, plan.stage.arithmetic) if used else rows


def _write_llm(plan: Merging, folder: Path, report: Report, finite: Finite) -> int:
    """Writes the LLM; returns how many of its tensors the adapters changed."""
    names = plan.reader.names()
    target = DTYPES.get(plan.stage.dtype)
    types: dict[str, tuple[torch.dtype, Shape]] = {}
    for name in names:
        own = plan.reader.dtype(name)
        types[name] = (target if target is not None and own.is_floating_point else own, plan.reader.shape(name))
    at_once = 2 if plan.base.rounded else AT_ONCE  # each holds a whole weight
    with Writer(folder, types, at_once=at_once, each=counting(report, len(names))) as writer:
        for name in names:
            writer.write(name, finite.watched(f"llm.{name}", cast(merged(plan, name), types[name][0])))
    return sum(any(adapter.touches(name) for adapter in plan.adapters) for name in names)


def _place_beside(plan: Merging, part: str, folder: Path, finite: Finite) -> None:
    """A part that the adapters are not in: as it is, or of several sources their mean."""
    if len(plan.folders) == 1 or not math.isclose(sum(plan.weights), 1.0, abs_tol=1e-6):
        finite.look_at_all(part, Reader(plan.folders[0] / part))
        files.place_tree(plan.folders[0] / part, folder)
        return
    mean = AverageStage(
        kind="average",
        models=[str(source) for source in plan.folders],
        weights=plan.weights,
        ema=None,
        rules=[],
        method=Linear(name="linear", sum="one"),
        base_model=None,
        dtype="keep",
    )
    write_part(Plan(mean, plan.folders, None), part, folder, finite)
    files.place_rest(plan.folders[0] / part, folder, "keep")


def _is_tied(weights: Path) -> bool:
    config = read_json(weights / "llm" / "config.json", "the model is incomplete: make the stage again")
    return bool(config.get("tie_word_embeddings", True))


def _another_base(first: Path, other: Path) -> list[Problem]:
    fix = "adapters are added up on the one LLM that all of them were trained on; otherwise average merged models"
    if not same_content(Reader(first / "llm"), Reader(other / "llm")):
        return [Problem("its adapter was trained on another LLM than the first one's", str(other), fix)]
    here, there = describe(first).get("quantized"), describe(other).get("quantized")
    return [] if here == there else [Problem("its LLM was held in other bits than the first one's", str(other), fix)]


def _beside_differs(folders: list[Path]) -> Iterator[Problem]:
    for part in ("tower", "connector"):
        for folder in folders[1:]:
            if not same_content(Reader(folders[0] / part), Reader(folder / part)):
                yield Problem(
                    f"the {part} was trained beside the adapter, and weights that do not sum to 1 say nothing about it",
                    str(folder),
                    "weights that sum to 1, with which it is averaged",
                )
