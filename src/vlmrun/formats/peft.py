"""A LoRA adapter as PEFT reads it, for the LLM alone or for the whole model in plain transformers.

PEFT finds layers by their names in the model that it is given, so an adapter fits one of the two. For the whole model
(`hf_llava`) layers are named in full, since the tower has layers of the same last names, and the connector is in it as
a module to save. `--base` makes a model with an adapter of either.

Source: transformers 5.23 models/llava; peft 0.21 utils/save_and_load.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.errors import Problem
from vlmrun.formats import base_model, hf, hf_llava, manifest
from vlmrun.formats.base import (
    ADAPTER,
    ADAPTER_CONFIG,
    How,
    Model,
    Names,
    inward,
    of_part,
    outward,
    without_adapter,
    write_tensors,
)
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.model.pretrained import read_json
from vlmrun.weights.adapter import CONFIG, layers_of
from vlmrun.weights.lazy import Lazy

FITS = ("hf_llava", "llm")
CONNECTOR = "connector"  # folder, of an adapter for the LLM alone, which has no place for it
_PROJECTOR = "multi_modal_projector"
# Internal names and those within the whole model, whose decoder is a module of its own.
_WHOLE: Names = (
    ("adapter.base_model.model.model.", "base_model.model.model.language_model."),
    ("adapter.base_model.model.", "base_model.model."),
    ("connector.layers.0.", f"base_model.model.model.{_PROJECTOR}.linear_1."),
    ("connector.layers.2.", f"base_model.model.model.{_PROJECTOR}.linear_2."),
)


def detect(folder: Path) -> bool:
    """Whether there is an adapter_config.json, and nothing of a whole model beside it."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read(folder: Path, how: How) -> Model:
    """The adapter, and with a base the whole model, whose connector is the one beside the adapter."""
    found = manifest.read(folder, how)
    model = base_model.model(how, folder) if how.base is not None else Model({}, {"model": None})
    tensors, config = tensors_of(folder), read_json(folder / CONFIG, "fetch the adapter again")
    if any(name.startswith(_WHOLE[0][1]) for name in tensors):
        inside = {str(inward(_WHOLE[2:], name) or inward(_WHOLE, name)): value for name, value in tensors.items()}
        config = config | {"target_modules": layers_of(name.removeprefix("adapter.") for name in inside)}
        config["modules_to_save"] = [name for name in config.get("modules_to_save") or () if name != _PROJECTOR] or None
    else:
        inside = of_part("adapter", tensors)
        if (folder / CONNECTOR).is_dir():
            inside |= of_part("connector", tensors_of(folder / CONNECTOR))
    if how.base is None:  # nothing says what the connector connects
        inside = {name: value for name, value in inside.items() if name.startswith("adapter.")}
    model.tensors |= inside
    model.json[ADAPTER_CONFIG] = found.get("json", {}).get(ADAPTER_CONFIG, config)
    model.description["adapter"] = "adapter"
    return model


def fits(model: Model, how: How) -> str:
    """What the adapter is written for: what was asked for, or the first that can be."""
    return how.fits or ("llm" if hf_llava.refuse(without_adapter(model), how) else "hf_llava")


def base_format(fits: str) -> Any:
    """The format of the model that plain peft puts the adapter on."""
    return hf_llava if fits == "hf_llava" else hf


def refuse(model: Model, how: How) -> list[Problem]:
    """There must be one, and the model that it is for must be one of plain transformers."""
    if not model.has("adapter"):
        return [Problem("the model has no adapter", "", "--to hf or --to native writes the whole of it")]
    return hf_llava.refuse(without_adapter(model), how) if how.fits == "hf_llava" else []


def write(model: Model, folder: Path, how: How) -> None:
    """The adapter and the connector; what both belong to stays behind."""
    config, chosen = dict(model.json[ADAPTER_CONFIG]), fits(model, how)
    adapter = {name: value for name, value in model.tensors.items() if name.startswith("adapter.")}
    connector = {name: value for name, value in model.tensors.items() if name.startswith("connector.")}
    if chosen == "hf_llava":
        named = _named(adapter | connector)
        config["target_modules"] = layers_of(named)
        config["modules_to_save"] = [
            *(config.get("modules_to_save") or ()),
            *([_PROJECTOR] if connector else []),
        ] or None
        config["base_model_name_or_path"] = None
        model.notes.append(
            "the adapter is for LlavaForConditionalGeneration: --to hf_llava --without-adapter writes it"
        )
    else:
        named = model.part("adapter")
        config["base_model_name_or_path"] = _home(model)
        model.notes.append("the adapter is for the LLM alone, as --to hf --without-adapter writes it")
        if connector:
            write_tensors(folder / CONNECTOR, model.part("connector").items())
            model.notes.append(f"the connector is beside it, in {CONNECTOR}/: plain peft does not read it")
    if model.has("tower"):
        model.notes.append(
            "the vision tower stays behind: one that was trained beside the adapter is in the model without adapter "
            "(--to hf_llava --without-adapter), not in this folder"
        )
    digests = write_tensors(folder, named.items(), name=ADAPTER, hashed=True)
    artifact.write_json(folder / CONFIG, config)
    manifest.write(folder, "peft", model, digests)


def _named(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    return {str(outward(_WHOLE, name)): value for name, value in tensors.items()}


def _home(model: Model) -> str | None:
    """The LLM's folder, which its other files are in; None when it is there for the time of the conversion only."""
    place = next((path.parent for name, path in model.files.items() if name.startswith("llm/")), None)
    return None if place is None or model.held is not None else str(place.resolve())
