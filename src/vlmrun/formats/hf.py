"""A language model alone, as a plain Hugging Face folder; of the folder of a whole VLM, its language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmrun.arch import families
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import manifest
from vlmrun.formats.base import GENERATION, LLM_CONFIG, How, Model, of_part, write_tensors
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.formats.native import write_files
from vlmrun.model.pretrained import read_json
from vlmrun.weights import folder as files
from vlmrun.weights.lazy import Lazy

PLACES = {LLM_CONFIG: "config.json", GENERATION: "generation_config.json"} | {
    f"llm/{name}": name for name in files.TOKENIZER
}


_EMBEDDING = "embed_tokens.weight"


def detect(folder: Path) -> bool:
    """Whether config.json names a family of language models, alone or as the text half of a VLM's."""
    if not (folder / "config.json").is_file():
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    values = read_json(folder / "config.json", "fetch the model again")
    text = values.get("text_config") if "vision_config" in values else values
    known = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *families.having("held_as"))
    return isinstance(text, dict) and text.get("model_type") in known and "mm_vision_tower" not in values


def read(folder: Path, how: How) -> Model:
    """The LLM, dequantized if it is quantized."""
    manifest.read(folder, how)
    values = read_json(folder / "config.json", "fetch the model again")
    tensors, whole = tensors_of(folder), "vision_config" in values
    model = Model(of_part("llm", _language(tensors) if whole else tensors), {"model": None})
    take_llm_files(model, folder)
    model.json[LLM_CONFIG] = _text(values, "llm.lm_head.weight" not in model.tensors) if whole else values
    model.json[LLM_CONFIG].pop("quantization_config", None)
    if whole:
        model.notes.append(f"of the whole {values['model_type']} the language model is taken")
    return model


def _text(values: dict[str, Any], tied: bool) -> dict[str, Any]:
    """The config of a VLM's language model, with what stands beside it in the VLM's."""
    shared: dict[str, Any] = {key: values[key] for key in ("dtype", "torch_dtype") if key in values}
    return shared | dict(values["text_config"]) | {"tie_word_embeddings": tied}


def _language(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """A VLM's tensors that are its language model's, as they are named in one alone."""
    ends = [name.removesuffix(_EMBEDDING) for name in tensors if name.endswith(_EMBEDDING)]
    if len(ends) != 1:
        raise CheckpointError(f"{len(ends)} tensors are called {_EMBEDDING}: which is the language model is not clear")
    found = {
        "model." + name.removeprefix(ends[0]): value for name, value in tensors.items() if name.startswith(ends[0])
    }
    head = next((name for name in tensors if name.endswith("lm_head.weight")), None)
    return found if head is None else found | {"lm_head.weight": tensors[head]}


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
