"""A language model alone, as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from vlmrun.arch import families
from vlmrun.errors import Problem
from vlmrun.formats import manifest
from vlmrun.formats.base import GENERATION, LLM_CONFIG, How, Model, of_part, write_tensors
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.formats.native import write_files
from vlmrun.model.pretrained import read_json
from vlmrun.weights import folder as files

PLACES = {LLM_CONFIG: "config.json", GENERATION: "generation_config.json"} | {
    f"llm/{name}": name for name in files.TOKENIZER
}


def detect(folder: Path) -> bool:
    """Whether config.json names a family of language models, and nothing of images."""
    if not (folder / "config.json").is_file():
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    values = read_json(folder / "config.json", "fetch the model again")
    known = values.get("model_type") in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *families.having("held_as"))
    return known and not {"mm_vision_tower", "vision_config"} & values.keys()


def read(folder: Path, how: How) -> Model:
    """The LLM, dequantized if it is quantized."""
    manifest.read(folder, how)
    model = Model(of_part("llm", tensors_of(folder)), {"model": None})
    take_llm_files(model, folder)
    model.json[LLM_CONFIG] = read_json(folder / "config.json", "fetch the model again")
    model.json[LLM_CONFIG].pop("quantization_config", None)
    return model


def take_llm_files(model: Model, folder: Path) -> None:
    """Tokenizer and generation config, which lie beside the weights."""
    for place, name in PLACES.items():
        if place == GENERATION and (folder / name).is_file():
            model.json[place] = read_json(folder / name, "fetch the model again")
        elif place != LLM_CONFIG and (folder / name).is_file():
            model.files[place] = folder / name


def refuse(model: Model, how: How) -> list[Problem]:
    """An adapter that is not merged would be lost."""
    if not model.has("llm"):
        return [Problem("there is no LLM here", "", "give --base")]
    if model.has("adapter"):
        return [Problem("the model has an adapter that is not merged", "", "merge it first, or --to peft")]
    return []


def write(model: Model, folder: Path, how: How) -> None:
    """The LLM and its tokenizer; tower and connector, if there are any, stay behind."""
    left = [part for part in ("tower", "connector") if model.has(part)]
    if left:
        model.notes.append(f"the LLM alone is written: {' and '.join(left)} are left out")
    write_tensors(folder, model.part("llm").items(), how)
    write_files(model, folder, PLACES)
