"""The weighted mean of models with equal tensors, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.checkpoints import files
from vlmrun.checkpoints.load import describe, weights_folder
from vlmrun.checkpoints.merge import Report, silent
from vlmrun.checkpoints.native import DESCRIPTION, PREPROCESSOR
from vlmrun.checkpoints.tensors import DTYPES, Reader, Writer
from vlmrun.errors import CheckpointError, Problem

PARTS = ("llm", "tower", "connector")
# Keys of config.json that say how a file was written, not what the model is.
_WRITING = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"}


def average(
    sources: list[Path], weights: list[float], destination: Path, *, dtype: str = "keep", report: Report = silent
) -> dict[str, Any]:
    """Writes sum(weight * model), summed in fp32; tensors that are equal in all models are kept to the bit.

    Args:
        sources: artifacts or weights folders; configuration, tokenizer and template come from the first.
        weights: one for each source; their sum is 1.
        dtype: `keep` the first model's types, or fp32, bf16, fp16.

    Returns:
        `models`, `tensors` and `averaged`: how many tensors there are, and how many of them differed.

    Raises:
        CheckpointError: listing every difference in names, shapes or configuration.
    """
    assert len(sources) == len(weights), f"{len(sources)} models, {len(weights)} weights"
    assert math.isclose(sum(weights), 1.0, abs_tol=1e-6), f"weights sum to {sum(weights)}"
    folders = [weights_folder(source) for source in sources]
    problems = [problem for folder in folders[1:] for problem in differences(folders[0], folder)]
    problems += [_has_adapter(folder) for folder in folders if describe(folder).get("adapter")]
    if problems:
        raise CheckpointError(problems)
    total = sum(len(Reader(folders[0] / part).names()) for part in PARTS)
    counts = {"models": len(sources), "tensors": total, "averaged": 0}
    done = 0
    with files.building(Path(destination)) as new:
        for part in PARTS:
            readers = [Reader(folder / part) for folder in folders]
            for name, changed in _average_part(readers, weights, new / part, dtype):
                done += 1
                counts["averaged"] += changed
                report(done, total, name)
            files.place_rest(folders[0] / part, new / part, dtype)
        description = describe(folders[0]) | ({} if dtype == "keep" else {"dtype": dtype})
        artifact.write_json(new / DESCRIPTION, description)
    return counts


def _average_part(readers: list[Reader], weights: list[float], folder: Path, dtype: str) -> Iterator[tuple[str, bool]]:
    """Writes one part; gives every tensor's name and whether the models differed there."""
    if dtype == "keep" and len({tuple(_inode(file) for file in reader.files()) for reader in readers}) == 1:
        files.place_weights(readers[0].folder, folder)
        yield from ((name, False) for name in readers[0].names())
        return
    kept = DTYPES.get(dtype)
    with Writer(folder) as writer:
        for name, tensor, changed in mean(readers, weights):
            writer.add(name, tensor if kept is None or not tensor.is_floating_point() else tensor.to(kept))
            yield name, changed


def _inode(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def mean(readers: list[Reader], weights: list[float]) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Names, means in the first reader's types, and whether the models differed there."""
    for name in readers[0].names():
        tensors = [reader.get(name) for reader in readers]
        first = tensors[0]
        if all(torch.equal(first, other) for other in tensors[1:]):
            yield name, first, False
            continue
        if not first.is_floating_point():
            raise CheckpointError(
                f"{name} holds whole numbers that differ", str(readers[0].folder), "such models cannot be averaged"
            )
        total = torch.zeros(first.shape, dtype=torch.float32)
        for weight, tensor in zip(weights, tensors, strict=True):
            total += weight * tensor.float()
        yield name, total.to(first.dtype), True


def differences(first: Path, other: Path) -> list[Problem]:
    """Everything that makes two weights folders unfit to be averaged."""
    found = []
    for part in PARTS:
        found += _tensor_differences(Reader(first / part), Reader(other / part), part)
    for name in ("llm/config.json", "tower/config.json", f"tower/{PREPROCESSOR}", "llm/tokenizer.json"):
        keys = _different_keys(_json(first / name), _json(other / name))
        if keys:
            found.append(Problem(f"{name} differs in: {', '.join(keys)}", str(other), _SAME))
    here, there = describe(first), describe(other)
    for model in (here["model"], there["model"]):
        model.pop("max_length", None)
    for key in ("model", "template", "image_aspect"):
        if here[key] != there[key]:
            found.append(Problem(f"{DESCRIPTION} differs in {key}: {there[key]} and {here[key]}", str(other), _SAME))
    return found


_SAME = "average models that were trained from the same parts in the same way"


def _tensor_differences(first: Reader, other: Reader, part: str) -> list[Problem]:
    here, there = set(first.names()), set(other.names())
    found = [f"{part}: {name} is missing" for name in sorted(here - there)]
    found += [f"{part}: {name} is not in the first model" for name in sorted(there - here)]
    for name in sorted(here & there):
        if first.shape(name) != other.shape(name):
            found.append(f"{part}: {name} is {list(other.shape(name))}, in the first model {list(first.shape(name))}")
    return [Problem(what, str(other.folder), _SAME) for what in found]


def _different_keys(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    keys = (here.keys() | there.keys()) - _WRITING
    return sorted(key for key in keys if here.get(key) != there.get(key))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON: {error}", str(path), "make the stage again") from error
    return value


def _has_adapter(folder: Path) -> Problem:
    return Problem("the model has an adapter of its own", str(folder), "merge it first: average the merge stages")
