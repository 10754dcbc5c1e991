"""What a Megatron-Core LLaVA is made of: what it cannot be, its numbers, and what a folder does not say of itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vlmrun.arch import families
from vlmrun.arch.towers import positions
from vlmrun.errors import Problem
from vlmrun.formats.base import LLM_CONFIG, PREPROCESSOR, TOWER_CONFIG, How, Model
from vlmrun.formats.llava_text import template_for
from vlmrun.formats.megatron_names import CONNECTOR, LAYERS, LLM, TOWER, Shape
from vlmrun.model.pretrained import read_json
from vlmrun.weights.lazy import Lazy, made
from vlmrun.weights.reader import dtype_name

CLASS = "tower.embeddings.class_embedding"  # [width] here, [1, 1, width] there
_CLIP = "vlmrun.model.towers.clip.Clip"
_MLP = "vlmrun.model.connectors.mlp.MLP"
_HEAD = 64  # width of a head in every CLIP that was published
_SIZES = (1, 2, 4, 8)
# ImageNet's, on pixels from 0 to 255, and a bilinear resize of the longer side: not CLIP's.
_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def refuse(model: Model, how: How) -> list[Problem]:
    """Everything that this layout cannot express, and sizes that the ranks do not divide."""
    config = model.config
    if config is None or not (model.has("llm") and model.has("tower")):
        return [Problem("there is no whole model here", "", "give --base")]
    return list(_kinds(model)) or list(_sizes(model, how.tp))


def _kinds(model: Model) -> Iterator[Problem]:
    config = model.config
    assert config is not None
    tower, connector, llm = config.tower, config.connector, model.json[LLM_CONFIG]
    stated = {key: value for key, value in tower.arguments.items() if key not in ("path", "layers")}
    if not families.find(llm["model_type"]).megatron:
        yield _cannot(f"LLM of the family {llm['model_type']} (it knows {', '.join(families.having('megatron'))})")
    if tower.target != _CLIP or (stated.get("scales") or [1]) != [1] or stated.get("feature", "patch") != "patch":
        yield _cannot(f"tower {tower.target.rpartition('.')[2]} with {stated}")
    if len(tower.arguments.get("layers") or ()) != 1:
        yield _cannot(f"tower layers {tower.arguments.get('layers')}")
    if connector.target != _MLP or connector.arguments.get("depth", 2) != 2:
        yield _cannot(f"connector {connector.target.rpartition('.')[2]} with {connector.arguments}")
    if config.tiles is not None:
        yield _cannot("images cut into tiles")
    if model.has("adapter"):
        yield Problem("the model has an adapter that is not merged", "", "merge it first")


def _sizes(model: Model, tp: int) -> Iterator[Problem]:
    if tp not in _SIZES:
        yield Problem(f"{tp} tensor-parallel ranks", "--tp", f"one of {', '.join(map(str, _SIZES))}")
    shape, llm, vision = shape_of(model), model.json[LLM_CONFIG], model.json[TOWER_CONFIG]
    sizes = {
        "key and value heads of the LLM": shape.groups,
        "the LLM's intermediate_size": llm["intermediate_size"],
        "heads of the tower": shape.heads,
        "the tower's intermediate_size": vision["intermediate_size"],
        "the connector's width": model.tensors["connector.layers.0.weight"].shape[0],
    }
    for what, number in sizes.items():
        if number % tp:
            yield Problem(f"{what}: {number} cannot be cut for {tp} ranks", "--tp", "fewer ranks")


def _cannot(what: str) -> Problem:
    return Problem(f"this Megatron LLaVA knows no {what}", "", "--to native keeps it")


def shape_of(model: Model) -> Shape:
    """The numbers of the rules; the tower only as deep as the layer that is asked for."""
    config, llm, vision = model.config, model.json[LLM_CONFIG], model.json[TOWER_CONFIG]
    assert config is not None
    heads = llm["num_attention_heads"]
    depth = positions(config.tower.arguments.get("layers", [-2]), vision["num_hidden_layers"])[0]
    return Shape(
        llm_layers=llm["num_hidden_layers"],
        groups=llm.get("num_key_value_heads") or heads,
        width=llm.get("head_dim") or llm["hidden_size"] // heads,
        tower_layers=depth,
        heads=vision["num_attention_heads"],
        tower_width=vision["hidden_size"] // vision["num_attention_heads"],
        vocabulary=llm["vocab_size"],
    )


def arguments(model: Model, tp: int) -> argparse.Namespace:
    """What Megatron compares a checkpoint with before it loads it."""
    shape, llm = shape_of(model), model.json[LLM_CONFIG]
    unit = 128 * tp
    return argparse.Namespace(
        num_layers=shape.llm_layers,
        hidden_size=llm["hidden_size"],
        ffn_hidden_size=llm["intermediate_size"],
        num_attention_heads=llm["num_attention_heads"],
        num_query_groups=shape.groups,
        group_query_attention=shape.groups != llm["num_attention_heads"],
        max_position_embeddings=llm.get("max_position_embeddings"),
        padded_vocab_size=-(-shape.vocabulary // unit) * unit,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=1,
    )


def described(folder: Path, ranks: list[dict[str, torch.Tensor]], how: How) -> Model:
    """A folder of Pai's own: it holds the LLM's config.json, tower and connector are known by their shapes."""
    llm = read_json(folder / "config.json", "copy the config.json and tokenizer of the LLM into the folder")
    first, n = ranks[0], len(ranks)
    projection = first.get(f"{CONNECTOR}linear_fc1.weight")
    hidden = None if projection is None else projection.shape[0] * n
    template, notes = template_for(families.find(llm["model_type"]).template, how.template)
    vision = _clip(first, n)
    edge = vision["image_size"]
    sizes = {"size": {"height": edge, "width": edge}}
    connector = {"hidden": hidden, "bias": f"{CONNECTOR}linear_fc1.bias" in first}
    description = {
        "model": {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": "llm"},
            "tower": {"_target_": _CLIP, "path": "tower", "layers": [-1], "feature": "patch", "scales": None},
            "connector": {"_target_": _MLP, "depth": 2, **connector},
            "template": template.name,
            "max_length": llm.get("max_position_embeddings", 2048),
            "image_markers": None,
            "new_tokens": [],
            "tiles": None,
        },
        "template": template.to_dict(),
        "image_aspect": "pad_after",  # zeros right and below, as Pai-Megatron-Patch prepares them
        "adapter": None,
        "quantized": None,
        "dtype": dtype_name(first[f"{LLM}embedding.word_embeddings.weight"].dtype),
    }
    json = {LLM_CONFIG: llm, TOWER_CONFIG: vision, PREPROCESSOR: _PREPROCESSOR | sizes}
    return Model({}, description, json, {}, notes)


def _clip(first: dict[str, torch.Tensor], n_ranks: int) -> dict[str, Any]:
    """The CLIP that tensors of these shapes are of."""
    kernel, rows = first[f"{TOWER}conv1.weight"], first[f"{TOWER}position_embeddings.weight"].shape[0]
    width, patch = kernel.shape[0], kernel.shape[-1]
    numbers = {name.removeprefix(TOWER + LAYERS).partition(".")[0] for name in first if name.startswith(TOWER + LAYERS)}
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        "hidden_size": width,
        "intermediate_size": first[f"{TOWER}{LAYERS}0.mlp.linear_fc1.weight"].shape[0] * n_ranks,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": max(1, width // _HEAD),
        "patch_size": patch,
        "image_size": round((rows - 1) ** 0.5) * patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def never_read(model: Model) -> dict[str, Lazy]:
    """The norm behind CLIP's last block, which Megatron has not and no feature passes: one that does nothing."""
    width, dtype = model.json[TOWER_CONFIG]["hidden_size"], model.tensors[CLASS].dtype
    norm = {"weight": torch.ones(width, dtype=dtype), "bias": torch.zeros(width, dtype=dtype)}
    return {f"tower.post_layernorm.{name}": made(value) for name, value in norm.items()}
