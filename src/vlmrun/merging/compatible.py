"""Whether models may be put together: equal names, shapes, configurations, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats.load import describe
from vlmrun.names import MODEL, PARTS
from vlmrun.weights.blocks import blocks
from vlmrun.weights.native import PREPROCESSOR
from vlmrun.weights.reader import Reader

# Keys of config.json that say how a file was written, not what the model is.
_WRITING = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"}
_SAME = "average models that were trained from the same parts in the same way"


def differences(first: Path, other: Path, *, is_base: bool = False) -> list[Problem]:
    """Everything that makes two weights folders unfit to be put together.

    Args:
        is_base: `other` is only what changes are counted from; it may have been trained with another template.
    """
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
        if is_base:
            model.pop("template", None)
    for key in ("model",) if is_base else ("model", "template", "image_aspect"):
        if here[key] != there[key]:
            found.append(Problem(f"{MODEL} differs in {key}: {there[key]} and {here[key]}", str(other), _SAME))
    return found


def same_files(readers: list[Reader]) -> bool:
    """Whether several folders hold the very same files, linked: there is nothing to compute then."""
    return len({tuple(_inode(file) for file in reader.files()) for reader in readers}) == 1


def same_content(first: Reader, other: Reader) -> bool:
    """Whether two folders hold equal tensors bit for bit."""
    if same_files([first, other]):
        return True
    if first.names() != other.names():
        return False
    return all(_equal(first, other, name) for name in first.names())


def _equal(first: Reader, other: Reader, name: str) -> bool:
    shape = first.shape(name)
    if (shape, first.dtype(name)) != (other.shape(name), other.dtype(name)):
        return False
    width = first.numel(name) // max(1, shape[0]) if shape else 1
    spans = [(start * width, stop * width) for start, stop in blocks(shape)]
    return all(torch.equal(first.flat(name, *span), other.flat(name, *span)) for span in spans)


def _inode(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


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
