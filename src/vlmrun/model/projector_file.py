"""Weights of a connector from an original `mm_projector.bin`, a safetensors file, or an artifact's connector folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from vlmrun.errors import CheckpointError
from vlmrun.model.connectors.base import Connector
from vlmrun.model.new_tokens import EMBEDDINGS
from vlmrun.model.pretrained import read_by_others
from vlmrun.model.tiles import NEWLINE
from vlmrun.names import WEIGHTS

_MARK = "mm_projector."


def fill(connector: Connector, path: str) -> None:
    """Loads all weights of a connector.

    Args:
        path: the file, the folder, or a finished stage.

    Raises:
        CheckpointError: when names or shapes are not exactly the connector's.
    """
    place = Path(path).expanduser()
    found = _ours(_read(place), connector, place)
    expected = {name: tuple(value.shape) for name, value in connector.state_dict().items()}
    if NEWLINE in expected and NEWLINE not in found:  # a connector pretrained on whole images has none yet
        found[NEWLINE] = connector.state_dict()[NEWLINE]
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != expected:
        names = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        listed = "; ".join(f"{name} is {_told(shapes, name)}, expected {_told(expected, name)}" for name in names[:4])
        raise CheckpointError(
            f"the connector's weights do not fit: {listed}",
            str(place),
            "choose the connector, tower and LLM that these weights were trained with",
        )
    connector.load_state_dict(found)


def rows(path: str) -> torch.Tensor | None:
    """The embeddings of added tokens that an original file has beside the projector; None when there are none."""
    found = _read(Path(path).expanduser())
    return next((value for name, value in found.items() if name.endswith(EMBEDDINGS)), None)


def _told(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "not there"


def _read(place: Path) -> dict[str, torch.Tensor]:
    folders = [place / WEIGHTS / "connector", place / "connector", place]
    folder = next((each for each in folders if any(each.glob("*.safetensors"))), None) if place.is_dir() else None
    files = sorted(folder.glob("*.safetensors")) if folder is not None else [place]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                "there are no connector weights", str(file), "give mm_projector.bin, a .safetensors file, or a stage"
            )
        tensors |= _read_file(file)
    return tensors


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    with read_by_others(str(file), "the file", "fetch or make it again"):
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError("the file holds no table of tensors", str(file), "give mm_projector.bin")
    return loaded


def _ours(tensors: Mapping[str, torch.Tensor], connector: Connector, place: Path) -> dict[str, torch.Tensor]:
    """Under our names: of an original file, what stands behind `mm_projector.`, and its newline."""
    if not any(_MARK in name for name in tensors):
        return dict(tensors)
    others = [name for name in tensors if _MARK not in name and not name.endswith((NEWLINE, *EMBEDDINGS))]
    if others:
        raise CheckpointError(
            f"the file holds more than a connector: {', '.join(others[:3])}", str(place), "give mm_projector.bin"
        )
    found = {
        _renamed(name.rpartition(_MARK)[2], connector.UPSTREAM): value
        for name, value in tensors.items()
        if _MARK in name
    }
    newlines = [value for name, value in tensors.items() if name.rpartition(".")[2] == NEWLINE]
    if newlines and NEWLINE in connector.state_dict():
        found[NEWLINE] = newlines[0]
    return found


def _renamed(name: str, table: Mapping[str, str]) -> str:
    prefix = max((each for each in table if name.startswith(each)), key=len, default="")
    return table.get(prefix, "") + name.removeprefix(prefix)
