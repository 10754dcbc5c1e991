"""A model from any format to any other, tensor by tensor, and the comparison of two models whatever their formats."""

from __future__ import annotations

import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vlmrun import logs
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import modules, table, verify, verify_adapter
from vlmrun.formats.base import How, Model, WrittenFormat, cast, without_adapter
from vlmrun.weights import folder as files
from vlmrun.weights.blocks import raw
from vlmrun.weights.finite import Finite
from vlmrun.weights.lazy import Lazy
from vlmrun.weights.writer import Report, silent

log = logs.get(__name__)

PROVES_ITSELF = ("hf_llava", "peft")


def convert(  # noqa: PLR0913 -- two folders, two formats, and what else was said
    source: Path,
    destination: Path,
    to: str,
    how: How,
    *,
    came_as: str | None = None,
    prove: bool = True,
    report: Report = silent,
) -> dict[str, Any]:
    """Writes the model in `source` as another format; the folder appears whole or not at all.

    Args:
        came_as: the source's format, where it is not to be detected.
        prove: compare an export with ours in plain transformers before it gets its name.

    Returns:
        `from`, `to`, `tensors`: how many were written, `notes`; `proof` when there was one.

    Raises:
        CheckpointError: when something is missing, unknown or damaged, the format cannot express the model, or the
            proof fails; when weights are not finite, in the source or, where they are cast, in the result.
    """
    writer = table.get(to)
    _check_destination(source, destination, to)
    name = came_as or table.detect(source)
    # The digests of an artifact of ours are compared beside the work, not before it.
    found, name = read(source, replace(how, trusted=name == "native"), name)
    if not how.adapter:
        found = without_adapter(found)
    if to != "delta":  # its dtype is that of the difference, not of the model
        found = cast(found, how.dtype)
    finite = Finite()
    found = _told(found, report, finite)
    problems = writer.refuse(found, how)
    if problems:
        raise CheckpointError([replace(problem, where=problem.where or str(source)) for problem in problems])
    assert isinstance(writer, WrittenFormat), to
    summary: dict[str, Any] = {"from": name, "to": to}
    written = replace(found, tensors=dict(found.tensors), json=dict(found.json))
    with files.building(destination) as new, files.verifying([source] if name == "native" else []):
        writer.write(written, new, how)
        finite.require(source)
        summary["tensors"] = written_tensors(new)
        if prove and to in PROVES_ITSELF:
            proof = verify.prove(new, found) if to == "hf_llava" else verify_adapter.prove(new, found, how)
            summary |= {} if proof is None else {"proof": proof}
    return summary | {"notes": written.notes}


def written_tensors(folder: Path) -> int:
    """How many tensors the files of weights that were just written hold, by their headers."""
    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                total += len(file.keys())
        elif path.suffix in (".bin", ".pt"):
            with zipfile.ZipFile(path) as archive:  # a record for each: no two share their numbers
                total += sum("/data/" in name for name in archive.namelist())
    return total


def read(source: Path, how: How, came_as: str | None = None) -> tuple[Model, str]:
    """A model under internal names, complete by its own configurations, and the format it was in."""
    name = came_as or table.detect(source)
    model = table.read(source, how, name)
    try:
        modules.check(model)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise table.odd(error, name, source) from error
    return model, name


def compare(
    first: Path, second: Path, how: How, came_as: tuple[str | None, str | None] = (None, None)
) -> list[Problem]:
    """Everything in which the tensors of two models differ, whatever formats they are in.

    Args:
        came_as: their formats, where they are not to be detected.
    """
    here, there = (read(folder, how, name)[0].tensors for folder, name in zip((first, second), came_as, strict=True))
    problems = [Problem(f"{name} is missing", str(second)) for name in sorted(here.keys() - there.keys())]
    problems += [Problem(f"{name} is not in {first}", str(second)) for name in sorted(there.keys() - here.keys())]
    for name in sorted(here.keys() & there.keys()):
        different = _difference(here[name], there[name])
        if different:
            problems.append(Problem(f"{name}: {different}", str(second)))
    return problems


def _difference(here: Lazy, there: Lazy) -> str | None:
    if here.shape != there.shape:
        return f"{list(there.shape)}, expected {list(here.shape)}"
    if here.dtype != there.dtype:
        return f"{there.dtype}, expected {here.dtype}"
    equal, apart = True, torch.zeros((), dtype=torch.float64)
    for a, b in zip(here.pieces(), there.pieces(), strict=True):
        if not (torch.equal(a, b) or raw(a) == raw(b)):
            apart = torch.maximum(apart, (a.double() - b.double()).abs().max())  # keeps a nan
            equal = False
    return None if equal else f"values differ by up to {apart.item():.3g}"


def _told(model: Model, report: Report, finite: Finite) -> Model:
    """The same model, reporting every tensor that is read, and looking at its numbers."""
    total, seen, telling_one = len(model.tensors), set[str](), threading.Lock()

    def telling(name: str, value: Lazy) -> Lazy:
        def rows(start: int, stop: int) -> torch.Tensor:
            with telling_one:
                if name not in seen:
                    seen.add(name)
                    report(len(seen), total, name)
            found = value.rows(start, stop)
            finite.look(name, found, start)
            return found

        return replace(value, rows=rows)

    return replace(model, tensors={name: telling(name, value) for name, value in model.tensors.items()})


def _check_destination(source: Path, destination: Path, to: str) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError("the destination is there already", str(destination), "remove it, or name another")
    if destination.resolve().is_relative_to(source.resolve()) and source.is_dir():
        raise CheckpointError("the destination is in the source", str(destination), "name another")
