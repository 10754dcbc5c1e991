"""`vlmrun.json` in a folder of another format: what that format has no place for, so that coming back loses nothing.

It also holds the digest of every weights file: safetensors has none, and a flipped bit in a weight is no error there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmrun import __version__, artifact
from vlmrun.errors import CheckpointError
from vlmrun.formats.base import How, Model
from vlmrun.model.pretrained import read_json

NAME = "vlmrun.json"
_WEIGHTS = (".safetensors", ".bin", ".pt")


def write(folder: Path, format: str, model: Model, digests: Mapping[Path, str] | None = None, **more: Any) -> None:
    """Describes a folder whose weights are all written.

    Args:
        digests: those of files that were taken while they were written.
        more: further values that this format needs to come back.
    """
    taken = {path.relative_to(folder).as_posix(): value for path, value in (digests or {}).items()}
    rest = artifact.digests(folder, set(_weights(folder)) - taken.keys(), known=False)
    described = {
        "format": format,
        "version": __version__,
        "description": model.description,
        "json": model.json,
        **more,
        "weights": dict(sorted((taken | rest).items())),
    }
    artifact.write_json(folder / NAME, described)


def read(folder: Path, how: How) -> dict[str, Any]:
    """What `write` wrote; empty when the folder was made by another program.

    Raises:
        CheckpointError: when weights are missing, new or changed.
    """
    if not (folder / NAME).is_file():
        return {}
    found = read_json(folder / NAME, "convert the model again")
    if how.trusted:
        return found
    listed, here = found.get("weights", {}), set(_weights(folder))
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - here)]
    wrong += [f"{name} is new" for name in sorted(here - listed.keys())]
    digests = artifact.digests(folder, here & listed.keys())
    wrong += [f"{name} has changed" for name in sorted(digests) if digests[name] != listed[name]]
    if wrong or "description" not in found:
        raise CheckpointError(
            f"the weights are not those that were converted: {'; '.join(wrong) or 'no description'}",
            str(folder),
            f"convert the model again; if they were changed on purpose, remove {NAME}",
        )
    return found


def format_of(folder: Path) -> str | None:
    """The format the folder was written in, if vlmrun wrote it."""
    path = folder / NAME
    return read_json(path, "convert the model again").get("format") if path.is_file() else None


def start(found: dict[str, Any]) -> Model:
    """A model without tensors yet."""
    return Model({}, dict(found["description"]), dict(found["json"]))


def _weights(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix in _WEIGHTS)
    return sorted(path.relative_to(folder).as_posix() for path in paths)
