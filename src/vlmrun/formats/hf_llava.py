"""`LlavaForConditionalGeneration`, as llava-hf publishes it: loads in plain transformers and in vLLM.

Names on disk are the ones that every version since 4.36 reads; those of transformers 5's own module tree are read too.

Source: llava-hf/llava-1.5-7b-hf config.json and index; transformers 5.23 models/llava
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.arch.families import find
from vlmrun.errors import Problem
from vlmrun.formats import image_token, llava_text, manifest
from vlmrun.formats.base import (
    GENERATION,
    LLM_CONFIG,
    PREPROCESSOR,
    TOWER_CONFIG,
    How,
    Model,
    Names,
    renamed_in,
    renamed_out,
    without_place,
    write_tensors,
)
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.formats.hf import PLACES, take_llm_files
from vlmrun.formats.native import write_files
from vlmrun.model import families
from vlmrun.model.pretrained import read_json
from vlmrun.weights.reader import DTYPES, dtype_name

NAMES: Names = (
    ("connector.layers.0.", "multi_modal_projector.linear_1."),
    ("connector.layers.2.", "multi_modal_projector.linear_2."),
    ("tower.", "vision_tower.vision_model."),
    ("llm.model.", "language_model.model."),
    ("llm.lm_head.weight", "language_model.lm_head.weight"),
)
_ALSO_READ: Names = (
    *NAMES,
    ("connector.layers.0.", "model.multi_modal_projector.linear_1."),
    ("connector.layers.2.", "model.multi_modal_projector.linear_2."),
    ("tower.", "model.vision_tower.vision_model."),
    ("tower.", "model.vision_tower."),
    ("tower.", "vision_tower."),
    ("llm.model.", "model.language_model."),
    ("llm.lm_head.", "lm_head."),
)
TOWERS = {
    "clip_vision_model": "vlmrun.model.towers.clip.Clip",
    "siglip_vision_model": "vlmrun.model.towers.siglip.Siglip",
}
MLP = "vlmrun.model.connectors.mlp.MLP"
# What the causal model of a family does to its logits, and Llava's head does not.
_ON_LOGITS = ("logits_scaling", "final_logit_softcapping", "logit_scale")
_OWN = ("text_config", "vision_config", "image_token_index", "vision_feature_layer")


def detect(folder: Path) -> bool:
    """Whether config.json is a LlavaConfig, which upstream's of the same model_type is not."""
    if not (folder / "config.json").is_file():
        return False
    values = read_json(folder / "config.json", "fetch the model again")
    return values.get("model_type") == "llava" and "text_config" in values and "vision_config" in values


def read(folder: Path, how: How) -> Model:
    """All three parts; the row of `<image>` stays unless vlmrun added it."""
    found = manifest.read(folder, how)
    values = read_json(folder / "config.json", "fetch the model again")
    model = manifest.start(found) if found else _described(folder, values, how)
    model.tensors = renamed_in(_ALSO_READ, tensors_of(folder), folder)
    given = dict(model.json)
    take_llm_files(model, folder)
    model.json |= given
    if found:
        image_token.remove(model, found["image_token"])
    else:
        llava_text.name_padding(model)
    return model


def _described(folder: Path, values: dict[str, Any], how: How) -> Model:
    text = _filled({"model_type": "llama"} | values["text_config"])
    vision = _filled({"model_type": "clip_vision_model"} | values["vision_config"])
    text["dtype"] = text.get("dtype") or values.get("dtype") or values.get("torch_dtype")
    layer = values.get("vision_feature_layer", -2)
    tower = {"_target_": TOWERS.get(vision["model_type"], TOWERS["clip_vision_model"]), "path": "tower"}
    if vision["model_type"] == "clip_vision_model":
        whole = values.get("vision_feature_select_strategy", "default") == "full"
        tower["feature"] = "cls_patch" if whole else "patch"
    preprocessor = llava_text.read_preprocessor(folder)
    template, note = llava_text.template_for(find(text["model_type"]).template, how.template)
    description = {
        "model": {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": "llm"},
            "tower": tower | {"layers": [layer] if isinstance(layer, int) else layer, "scales": None},
            "connector": {"_target_": MLP, "depth": 2, "bias": values.get("multimodal_projector_bias", True)},
            "template": template.name,
            "max_length": text.get("max_position_embeddings", 2048),
            "image_markers": None,
            "new_tokens": [],
            "tiles": None,
        },
        "template": template.to_dict(),
        "image_aspect": "pad" if preprocessor.pop("do_pad", False) else "square",
        "adapter": None,
        "quantized": None,
        "dtype": next((name for name, dtype in DTYPES.items() if str(dtype) == f"torch.{text['dtype']}"), "fp16"),
    }
    return Model({}, description, {LLM_CONFIG: text, TOWER_CONFIG: vision, PREPROCESSOR: preprocessor}, {}, note)


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """With what published folders leave out because it is the family's default."""
    filled: dict[str, Any] = json.loads(families.from_values(values).to_json_string())
    return filled


def refuse(model: Model, how: How) -> list[Problem]:
    """Everything that transformers' Llava cannot express."""
    config = model.config
    if config is None or not (model.has("llm") and model.has("tower")):
        return [Problem("there is no whole model here", "", "give --base")]
    found = list(_tower(model)) + list(_llm(model))
    if config.connector.target != MLP or config.connector.arguments.get("depth", 2) != 2:
        found.append(_cannot(f"the connector {config.connector.target.rpartition('.')[2]} {_told(config.connector)}"))
    if config.tiles is not None or model.description.get("image_aspect") == "anyres":
        found.append(_cannot("images cut into tiles (image_aspect: anyres)"))
    if model.description.get("image_aspect") == "pad_after":
        found.append(_cannot("images in the upper left of a black square (image_aspect: pad_after)"))
    if model.has("adapter"):
        found.append(Problem("the model has an adapter that is not merged", "", "merge it first"))
    return found or without_place(NAMES, model, "transformers' Llava")


def _tower(model: Model) -> list[Problem]:
    config = model.config
    assert config is not None
    tower, found = config.tower, []
    if tower.target not in TOWERS.values():
        found.append(_cannot(f"the tower {tower.target.rpartition('.')[2]}"))
    if (tower.arguments.get("scales") or [1]) != [1]:
        found.append(_cannot(f"a tower at the scales {tower.arguments['scales']} (S2)"))
    if tower.arguments.get("layers") is None:
        found.append(_cannot("layers of the tower that the connector chooses"))
    return found


def _llm(model: Model) -> list[Problem]:
    values = model.json[LLM_CONFIG]
    return [_cannot(f"{key}: {values[key]} of the LLM") for key in _ON_LOGITS if values.get(key) not in (None, 1, 1.0)]


def _told(target: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in target.arguments.items())


def _cannot(what: str) -> Problem:
    return Problem(f"transformers' Llava knows no {what}", "", "--to native or --to llava keep it")


def write(model: Model, folder: Path, how: How) -> None:
    """Weights, configurations, processor and chat template."""
    before = dict(model.json)
    added = image_token.add(model, folder)
    digests = write_tensors(folder, renamed_out(NAMES, model), how, hashed=True)
    artifact.write_json(folder / "config.json", config_values(model, added["id"]))
    artifact.write_json(folder / "generation_config.json", llava_text.generation(model))
    rest = {place: name for place, name in PLACES.items() if place not in (LLM_CONFIG, GENERATION)}
    write_files(model, folder, {place: name for place, name in rest.items() if not (folder / name).exists()})
    llava_text.write_processor(model, folder)
    model.json = before
    manifest.write(folder, "hf_llava", model, digests, image_token=added)


def config_values(model: Model, image_id: int) -> dict[str, Any]:
    """The LlavaConfig."""
    config, vision, text = model.config, model.json[TOWER_CONFIG], model.json[LLM_CONFIG]
    assert config is not None
    layers = list(config.tower.arguments.get("layers", [-2]))
    embedding = model.tensors["llm.model.embed_tokens.weight"]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text | {"vocab_size": embedding.shape[0]},
        "vision_config": vision,
        "image_token_index": image_id,
        "image_seq_length": llava_text.n_image_tokens(model),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": "connector.layers.0.bias" in model.tensors,
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": llava_text.strategy(model),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "dtype": str(DTYPES[_dtype(model)]).removeprefix("torch."),
    }


def _dtype(model: Model) -> str:
    return dtype_name(model.tensors["llm.model.embed_tokens.weight"].dtype)
