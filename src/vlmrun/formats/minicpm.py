"""MiniCPM-V 2.5 and 2.6 as they are published: three parts in one folder, `llm.`, `vpm.` and `resampler.`.

Neither reading nor writing runs the code that is published beside the weights. What is written has no such code either:
users who want to load the folder with it copy it there from the published one.

Source: openbmb/MiniCPM-Llama3-V-2_5 and MiniCPM-V-2_6 config.json, preprocessor_config.json, modeling_minicpmv.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.config.schema import Slices
from vlmrun.data import templates
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import manifest
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
from vlmrun.model.pretrained import read_json
from vlmrun.model.towers.siglip import preprocessor
from vlmrun.model.towers.siglip_navit import PROCESSOR

NAMES: Names = (("llm.", "llm."), ("tower.", "vpm."), ("connector.", "resampler."))
NAVIT = "vlmrun.model.towers.siglip_navit.SiglipNavit"
RESAMPLER = "vlmrun.model.connectors.resampler.Resampler"
_TABLE = "resampler.pos_embed"  # in some files, and computed again by all
# What of config.json is not the LLM's; the rest is a flat config of Llama or Qwen2.
_OWN = (
    "architectures", "auto_map", "batch_vision_input", "drop_vision_last_layer", "image_size", "mm_use_im_start_end",
    "patch_size", "query_num", "slice_config", "slice_mode", "use_image_id", "version", "vision_batch_size",
    "vision_config", "vision_encoder", "model_type", "quantization_config",
)  # fmt: skip
# Of each version: the LLM's family, the template, and the two quirks of the tower that 2.5 was trained with.
_VERSIONS: dict[str, dict[str, Any]] = {
    "2.5": {
        "family": "llama",
        "template": "minicpm_v25",
        "tower": {"positions": "strip", "sees_padding": True},
        "tiles": {"marks": "nested", "image_ids": "never"},
    },
    "2.6": {
        "family": "qwen2",
        "template": "minicpm_v26",
        "tower": {"positions": "grid", "sees_padding": False},
        "tiles": {"marks": "flat", "image_ids": "always"},
    },
}
_NORMALISE = {"norm_mean": "image_mean", "norm_std": "image_std"}


def detect(folder: Path) -> bool:
    """Whether config.json is a MiniCPM-V's."""
    if not (folder / "config.json").is_file():
        return False
    return read_json(folder / "config.json", "fetch the model again").get("model_type") == "minicpmv"


def read(folder: Path, how: How) -> Model:
    """All three parts, quantized ones as bitsandbytes computes with them.

    Raises:
        CheckpointError: for 2.0, whose tower is another, and for names that are unknown.
    """
    found = manifest.read(folder, how)
    values = read_json(folder / "config.json", "fetch the model again")
    model = manifest.start(found) if found else _described(folder, values)
    tensors = {name: value for name, value in tensors_of(folder).items() if name != _TABLE}
    model.tensors = renamed_in(NAMES, tensors, folder)
    given = dict(model.json)
    take_llm_files(model, folder)
    model.json |= given
    return model


def _described(folder: Path, values: dict[str, Any]) -> Model:
    version = _VERSIONS[_version(folder, values)]
    text = {key: value for key, value in values.items() if key not in _OWN}
    text |= {"model_type": version["family"], "dtype": values.get("dtype") or values.get("torch_dtype")}
    vision = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6} | dict(values["vision_config"])
    vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    cut = values.get("slice_config") or {}
    edge = values.get("image_size", 448)
    tiles = {"max_slices": cut.get("max_slice_nums", 9), "resolution": cut.get("scale_resolution", 448)}
    tower = {"_target_": NAVIT, "path": "tower", "layers": [-2 if values.get("drop_vision_last_layer") else -1]}
    template = templates.get(version["template"])
    description = {
        "model": {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": "llm"},
            "tower": tower | {"image_size": edge, **version["tower"]},
            "connector": {"_target_": RESAMPLER, "queries": values["query_num"], "heads": None},
            "template": template.name,
            "max_length": min(text.get("max_position_embeddings", 2048), 8192),
            "image_markers": None,
            "new_tokens": [],
            "tiles": tiles | version["tiles"],
        },
        "template": template.to_dict(),
        "image_aspect": "slices",
        "adapter": None,
        "quantized": None,
        "dtype": {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(f"torch.{text['dtype']}", "fp32"),
    }
    pictures = _pictures(folder, edge, vision)
    return Model({}, description, {LLM_CONFIG: text, TOWER_CONFIG: vision, PREPROCESSOR: pictures})


def _version(folder: Path, values: dict[str, Any]) -> str:
    """2.5's config.json does not name it; the family of its LLM does."""
    if "scale_emb" in values:
        raise CheckpointError(
            "MiniCPM-V 2.0's tower is one of timm, and its positions are another resampler's",
            str(folder),
            "2.5 and 2.6 are read",
        )
    said = values.get("version")
    version = str(said) if said is not None else "2.5"
    if version not in _VERSIONS:
        raise CheckpointError(f"MiniCPM-V {version} is not known", str(folder), "2.5 and 2.6 are read")
    return version


def _pictures(folder: Path, edge: int, vision: dict[str, Any]) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    means = {ours: said.get(theirs, [0.5] * 3) for theirs, ours in _NORMALISE.items()}
    return preprocessor(edge) | PROCESSOR | {"patch_size": vision["patch_size"]} | means


def refuse(model: Model, how: How) -> list[Problem]:
    """Other parts than a MiniCPM-V's have no place here."""
    config = model.config
    if config is None or not (model.has("llm") and model.has("tower")):
        return [Problem("there is no whole model here", "", "give --base")]
    found = []
    for part, target in (("tower", NAVIT), ("connector", RESAMPLER)):
        kind = getattr(config, part).target
        if kind != target:
            found.append(Problem(f"MiniCPM-V knows no {part} {kind.rpartition('.')[2]}", "", "--to native keeps it"))
    if config.connector.arguments.get("heads") is not None:
        found.append(Problem("MiniCPM-V has one head for every 128 channels", "model.connector.heads", "--to native"))
    if _of_family(model) is None:
        found.append(Problem(f"MiniCPM-V knows no LLM {model.json[LLM_CONFIG].get('model_type')!r}", "", "--to native"))
    if not isinstance(config.tiles, Slices) or config.tiles.marks is None:
        found.append(Problem("MiniCPM-V's images are cut into marked slices", "model.tiles", "--to native"))
    if model.has("adapter"):
        found.append(Problem("the model has an adapter that is not merged", "", "merge it first"))
    return found or without_place(NAMES, model, "MiniCPM-V")


def _of_family(model: Model) -> str | None:
    family = model.json[LLM_CONFIG].get("model_type")
    return next((version for version, said in _VERSIONS.items() if said["family"] == family), None)


def write(model: Model, folder: Path, how: How) -> None:
    """Weights, config.json, preprocessor_config.json, the tokenizer."""
    digests = write_tensors(folder, renamed_out(NAMES, model), how, hashed=True)
    artifact.write_json(folder / "config.json", config_values(model))
    artifact.write_json(folder / "preprocessor_config.json", _processor(model))
    if GENERATION in model.json:
        artifact.write_json(folder / "generation_config.json", model.json[GENERATION])
    rest = {place: name for place, name in PLACES.items() if place not in (LLM_CONFIG, GENERATION)}
    write_files(model, folder, rest)
    manifest.write(folder, "minicpm", model, digests)
    model.notes.append("to load this with the code published for it, copy that code (*.py) from the published folder")


def config_values(model: Model) -> dict[str, Any]:
    """The published config.json: the LLM's own values, and the rest beside them."""
    config, vision = model.config, model.json[TOWER_CONFIG]
    assert config is not None
    assert isinstance(config.tiles, Slices)
    version = _of_family(model)
    cut = {"max_slice_nums": config.tiles.max_slices, "patch_size": vision["patch_size"], "model_type": "minicpmv"}
    layers = config.tower.arguments.get("layers", [-1])
    return model.json[LLM_CONFIG] | {
        "architectures": ["MiniCPMV"],
        "model_type": "minicpmv",
        **({} if version == "2.5" else {"version": 2.6, "use_image_id": True}),
        "batch_vision_input": True,
        "drop_vision_last_layer": layers == [-2],
        "image_size": config.tower.arguments.get("image_size", 448),
        "patch_size": vision["patch_size"],
        "query_num": config.connector.arguments["queries"],
        "slice_config": cut | {"scale_resolution": config.tiles.resolution},
        "slice_mode": True,
        "vision_config": vision,
    }


def _processor(model: Model) -> dict[str, Any]:
    config, pictures = model.config, model.json[PREPROCESSOR]
    assert config is not None
    assert isinstance(config.tiles, Slices)
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "max_slice_nums": config.tiles.max_slices,
        "scale_resolution": config.tiles.resolution,
        "patch_size": pictures["patch_size"],
        "use_image_id": config.tiles.image_ids != "never",
        "image_feature_size": config.connector.arguments["queries"],
        "slice_mode": True,
        **{theirs: pictures.get(ours, [0.5] * 3) for theirs, ours in _NORMALISE.items()},
        "version": float(str(_of_family(model))),
    }
