"""One model made of several with equal tensors, a slice at a time, by any of the methods in `methods/`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmrun import artifact, expressions
from vlmrun.config import derived
from vlmrun.config.schema import AverageStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats.load import describe
from vlmrun.merging import methods
from vlmrun.merging.compatible import differences, same_files
from vlmrun.merging.methods.blocks import Piece, Source
from vlmrun.names import MODEL, PARTS
from vlmrun.weights import folder as files
from vlmrun.weights.blocks import Shape, cast
from vlmrun.weights.finite import Finite
from vlmrun.weights.native import weights_folder
from vlmrun.weights.reader import DTYPES, Reader
from vlmrun.weights.writer import Report, Writer, counting, silent


def average(
    stage: AverageStage,
    sources: list[Path],
    destination: Path,
    *,
    base: Path | None = None,
    verify: bool = True,
    report: Report = silent,
) -> dict[str, Any]:
    """Writes the model that a stage's method makes of several; what is equal in all of them is kept bit for bit.

    Nothing is held but slices, so memory does not grow with the models or with their largest tensor.

    Args:
        sources: artifacts or weights folders, in the order of the stage's weights; configuration, tokenizer,
            preprocessor and template come from the first.
        base: what changes are counted from, for the methods that add up changes.
        verify: compare the digests of those sources that are artifacts, beside the work.

    Returns:
        `models`, `tensors` and `averaged`: how many tensors there are, and how many of them differed.

    Raises:
        CheckpointError: listing every difference in names, shapes or configuration, or a file that is damaged.
    """
    plan = prepare(stage, sources, base)
    total, changed, finite = len(plan.names()), 0, Finite()
    told = counting(report, total)
    checked = [*sources, *([base] if base else [])] if verify else []
    with files.building(Path(destination)) as new, files.verifying(checked):
        for part in PARTS:
            changed += write_part(plan, part, new / part, finite, told)
            files.place_rest(plan.folders[0] / part, new / part, stage.dtype)
        description = describe(plan.folders[0]) | ({} if stage.dtype == "keep" else {"dtype": stage.dtype})
        artifact.write_json(new / MODEL, description)
        finite.require(plan.folders[0])
    return {"models": len(sources), "tensors": total, "averaged": changed}


@dataclass(frozen=True)
class Plan:
    """Checked sources and what is to be made of them. Nothing has been written."""

    stage: AverageStage
    folders: list[Path]
    base: Path | None

    def names(self) -> list[str]:
        """Every tensor, with its part in front."""
        return [f"{part}.{name}" for part in PARTS for name in Reader(self.folders[0] / part).names()]

    def weights(self, name: str) -> list[float]:
        """The weights of a tensor: those of the first rule that fits its name, or the stage's own."""
        own = derived.average_weights(self.stage)
        found = next((rule.weights for rule in self.stage.rules if expressions.occurs(rule.tensors, name)), own)
        return derived.shares(found, self.stage.method)


def prepare(stage: AverageStage, sources: list[Path], base: Path | None) -> Plan:
    """Opens and compares the sources without reading a tensor.

    Raises:
        CheckpointError: listing everything that makes them unfit, and every rule that fits no tensor.
    """
    folders = [weights_folder(source) for source in sources]
    origin = None if base is None else weights_folder(base)
    problems = [problem for folder in folders[1:] for problem in differences(folders[0], folder)]
    problems += differences(folders[0], origin, is_base=True) if origin else []
    everything = [*folders, *([origin] if origin else [])]
    problems += [_has_adapter(folder) for folder in everything if describe(folder).get("adapter")]
    plan = Plan(stage, folders, origin)
    names = plan.names()
    for rule in stage.rules:
        if not any(expressions.occurs(rule.tensors, name) for name in names):
            example = f"names are such as {', '.join(names[:: max(1, len(names) // 3)][:3])}"
            problems.append(Problem(f"no tensor fits the rule {rule.tensors!r}", str(folders[0]), example))
    if problems:
        raise CheckpointError(problems)
    return plan


def tensors(plan: Plan, part: str) -> Iterator[tuple[str, Iterator[Tensor], list[bool]]]:
    """Of every tensor of a part its name, the slices made of it, and, once these are taken, where the models differ."""
    readers = [Reader(folder / part) for folder in plan.folders]
    base = Reader(plan.base / part) if plan.base else None
    for name in readers[0].names():
        differed: list[bool] = []
        source = Source(f"{part}.{name}", readers[0].shape(name), _look(name, readers, base, differed))
        if readers[0].dtype(name).is_floating_point:
            made = methods.combine(source, plan.weights(source.name), plan.stage.method)
        else:
            made = _unchanged(source, readers[0])
        yield name, made, differed


def _look(name: str, readers: list[Reader], base: Reader | None, differed: list[bool]) -> Callable[[int, int], Piece]:
    def read(start: int, stop: int) -> Piece:
        models = [reader.flat(name, start, stop) for reader in readers]
        piece = Piece(models, None if base is None else base.flat(name, start, stop))
        if not any(differed):
            differed.append(not piece.same)
        return piece

    return read


def _unchanged(source: Source, first: Reader) -> Iterator[Tensor]:
    for piece in source:
        if not piece.same:
            raise CheckpointError(
                f"{source.name} holds whole numbers that differ", str(first.folder), "such models cannot be averaged"
            )
        yield piece.models[0]


def write_part(
    plan: Plan, part: str, folder: Path, finite: Finite, told: Callable[[str], None] = lambda _: None
) -> int:
    """Writes one part, reporting every tensor; returns of how many the models differed.

    Args:
        finite: looks at what is written, or linked.
    """
    readers = [Reader(source / part) for source in [*plan.folders, *([plan.base] if plan.base else [])]]
    if plan.stage.dtype == "keep" and same_files(readers) and _keeps_equal(plan, part, readers[0].names()):
        finite.look_at_all(part, readers[0])
        files.place_weights(readers[0].folder, folder)
        for name in readers[0].names():
            told(name)
        return 0
    types = {name: _dtype(readers[0], name, plan.stage.dtype) for name in readers[0].names()}
    found = []
    with Writer(folder, types, each=told) as writer:
        for name, made, differed in tensors(plan, part):
            writer.write(name, finite.watched(f"{part}.{name}", cast(made, types[name][0])))
            found.append(differed)
    return sum(any(differed) for differed in found)


def _keeps_equal(plan: Plan, part: str, names: list[str]) -> bool:
    """Whether what is equal in all models stays as it is: not where weights that do not sum to 1 scale it."""
    if plan.base is not None:
        return True
    return all(math.isclose(sum(plan.weights(f"{part}.{name}")), 1.0, abs_tol=1e-6) for name in names)


def _dtype(reader: Reader, name: str, dtype: str) -> tuple[torch.dtype, Shape]:
    own = reader.dtype(name)
    return (DTYPES[dtype] if dtype in DTYPES and own.is_floating_point else own), reader.shape(name)


def _has_adapter(folder: Path) -> Problem:
    return Problem("the model has an adapter of its own", str(folder), "merge it first: average the merge stages")
