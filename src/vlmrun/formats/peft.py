"""A LoRA adapter alone, as PEFT reads it; `--base` makes a model with an adapter of it."""

from __future__ import annotations

from pathlib import Path

from vlmrun import artifact
from vlmrun.errors import Problem
from vlmrun.formats import base_model, manifest
from vlmrun.formats.base import ADAPTER, ADAPTER_CONFIG, How, Model, of_part, write_tensors
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.model.pretrained import read_json
from vlmrun.weights.adapter import CONFIG


def detect(folder: Path) -> bool:
    """Whether there is an adapter_config.json, and nothing of a whole model beside it."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read(folder: Path, how: How) -> Model:
    """The adapter, and the base if there is one."""
    manifest.read(folder, how)
    model = base_model.model(how, folder) if how.base is not None else Model({}, {"model": None})
    model.tensors |= of_part("adapter", tensors_of(folder))
    model.json[ADAPTER_CONFIG] = read_json(folder / CONFIG, "fetch the adapter again")
    model.description["adapter"] = "adapter"
    return model


def refuse(model: Model, how: How) -> list[Problem]:
    """There must be one."""
    if model.has("adapter"):
        return []
    return [Problem("the model has no adapter", "", "--to hf or --to native writes the whole of it")]


def write(model: Model, folder: Path, how: How) -> None:
    """The adapter; what it belongs to stays behind."""
    write_tensors(folder, model.part("adapter").items(), name=ADAPTER)
    artifact.write_json(folder / CONFIG, model.json[ADAPTER_CONFIG])
    if model.has("connector"):
        model.notes.append("the adapter alone is written: a connector that was trained with it is left out")
