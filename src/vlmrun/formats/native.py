"""vlmrun's own weights folder (ADR 7); the other formats are turned into its names and files, and made from them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from vlmrun import artifact
from vlmrun.errors import Problem
from vlmrun.formats.base import ADAPTER, How, Model, of_part, write_tensors
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.model.pretrained import read_json
from vlmrun.names import MODEL, PARTS, WEIGHTS
from vlmrun.weights import folder as files
from vlmrun.weights.native import FORMAT, describe, weights_folder


def detect(folder: Path) -> bool:
    """Whether there is a model.json, here or in `weights`."""
    return any((place / MODEL).is_file() for place in (folder, folder / WEIGHTS))


def read(folder: Path, how: How) -> Model:
    """Every part that is there; an artifact's files are compared with its digests first."""
    weights = weights_folder(folder)
    if not how.trusted:
        _verify(weights)
    model = Model({}, describe(weights))
    for part in (*PARTS, "adapter"):
        place = weights / part
        if not place.is_dir() or (part == "adapter" and not model.description.get("adapter")):
            continue
        model.tensors |= of_part(part, tensors_of(place))
        for file in sorted(place.iterdir()):
            _take(model, f"{part}/{file.name}", file)
    tower = model.json.get("tower/config.json")
    if tower is not None and "vision_config" in tower:
        model.json["tower/config.json"] = tower["vision_config"]  # of a whole CLIP, whose text half is left out
    return model


def _take(model: Model, place: str, file: Path) -> None:
    if file.suffix == ".json" and file.name.endswith("config.json") and "tokenizer" not in file.name:
        model.json[place] = read_json(file, "make the model again")
    elif file.name in files.TOKENIZER:
        model.files[place] = file


def _verify(weights: Path) -> None:
    folder = weights.parent
    found = artifact.read(folder) if weights.name == WEIGHTS else None
    if found is not None:
        artifact.verify(folder, found, thorough=True)


def refuse(model: Model, how: How) -> list[Problem]:
    """A native folder needs all three parts and a description of them."""
    missing = [part for part in ("llm", "tower") if not model.has(part)]
    if missing or model.config is None:
        what = ", ".join(missing) or "connector"
        return [Problem(f"a native folder is a whole model; there is no {what} here", "", "give --base, or --to hf")]
    return []


def write(model: Model, folder: Path, how: How) -> None:
    """Parts, their files, and model.json last."""
    config = model.config
    assert config is not None
    for part in (*PARTS, "adapter"):
        tensors = model.part(part)
        if tensors or part == "connector":
            write_tensors(folder / part, tensors.items(), name=ADAPTER if part == "adapter" else "model")
    write_files(model, folder)
    description = {key: model.description.get(key) for key in _KEYS}
    adapter = "adapter" if model.has("adapter") else None
    artifact.write_json(folder / MODEL, {"format": FORMAT, **description, "adapter": adapter})


_KEYS = ("model", "template", "image_aspect", "image_background", "adapter", "quantized", "dtype")


def write_files(model: Model, folder: Path, rename: Mapping[str, str] | None = None) -> None:
    """Configurations and further files.

    Args:
        rename: their places, where they are others than in a native folder; those not named are left out. None: the
            same.
    """
    for place, values in model.json.items():
        target = place if rename is None else rename.get(place)
        if target is not None:
            artifact.write_json(folder / target, values)
    for place, source in model.files.items():
        target = place if rename is None else rename.get(place)
        if target is not None:  # copied, never linked: a folder given away may be edited
            shutil.copyfile(source, folder / target)
