"""The values that upstream's projects mix into the LLM's config.json, and what they mean here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlmrun.arch import families
from vlmrun.arch.projectors import Dense
from vlmrun.config.schema import ModelConfig
from vlmrun.data import templates
from vlmrun.errors import CheckpointError
from vlmrun.formats.base import LLM_CONFIG, How, Model
from vlmrun.formats.llava_text import template_for
from vlmrun.model.pretrained import read_json
from vlmrun.weights.reader import dtype_name

DENSE = "vlmrun.model.connectors.dense.Dense"
_CONNECTORS = "vlmrun.model.connectors"
# `mm_projector_type` -> connector; mlpNx_gelu is one for every N.
_TYPES: dict[str, dict[str, Any]] = {
    "linear": {"_target_": f"{_CONNECTORS}.mlp.MLP", "depth": 1},
    "identity": {"_target_": f"{_CONNECTORS}.identity.Identity"},
    "sppv1": {"_target_": f"{_CONNECTORS}.spp.SPP", "version": "v1"},
    "sppv2": {"_target_": f"{_CONNECTORS}.spp.SPP", "version": "v2"},
    "sppv3": {"_target_": f"{_CONNECTORS}.spp.SPP", "version": "v3"},
    "ldp": {"_target_": f"{_CONNECTORS}.ldp.LDP"},
    "vanilla": {"_target_": f"{_CONNECTORS}.grouped.Grouped", "order": "channel"},
    "minigpt": {"_target_": f"{_CONNECTORS}.grouped.Grouped", "order": "token"},
}
_MLP = re.compile(r"mlp(\d+)x_gelu")
# Keys that are not the LLM's, besides all that begin with mm_.
_NOT_LLM = {
    "use_mm_proj", "image_aspect_ratio", "image_grid_pinpoints", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter",
    "tokenizer_padding_side", "tokenizer_model_max_length", "image_crop_resolution", "image_split_resolution",
    "unfreeze_mm_vision_tower", "unfreeze_vision_tower", "use_s2", "is_video", "continuous_training", "s2",
    "s2_scales", "freeze_mm_vision_resampler", "auto_map", "quantization_config",
}  # fmt: skip
_FAMILY = re.compile(r"^(llava_|bunny-)|^llava$")
_MARKERS = ["<im_start>", "<im_end>"]


def read(folder: Path) -> dict[str, Any]:
    """The values of config.json; none when there is no such file."""
    path = folder / "config.json"
    return read_json(path, "fetch the model again") if path.is_file() else {}


def family(values: dict[str, Any]) -> str:
    """The LLM's own model type."""
    return _FAMILY.sub("", str(values["model_type"])) or "llama"


def language_model(values: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the LLM alone."""
    kept = {key: value for key, value in values.items() if not key.startswith("mm_") and key not in _NOT_LLM}
    found = families.find(family(values))
    return kept | {"model_type": found.name, "architectures": [f"{found.architecture or ''}ForCausalLM"]}


def described(values: dict[str, Any], how: How) -> Model:
    """What model.json would say; the template is not among the values and is assumed when it is not given.

    Raises:
        CheckpointError: when the connector is not known here.
    """
    aspect = values.get("image_aspect_ratio", "square")
    markers = _MARKERS if values.get("mm_use_im_start_end") else None
    found = families.find(family(values))
    bunny = str(values["model_type"]).startswith("bunny-")
    usual = (found.bunny_template if bunny else None) or found.template
    template, notes = template_for(usual, how.template)
    marked = templates.marked(template.name, markers)
    description = {
        "model": {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": "llm"},
            "tower": _tower(values),
            "connector": _connector(values),
            "template": template.name,
            "max_length": values.get("tokenizer_model_max_length") or values.get("max_position_embeddings") or 2048,
            "image_markers": markers,
            "new_tokens": [],
            "tiles": _tiles(values) if aspect == "anyres" else None,
        },
        "template": marked.to_dict(),
        "image_aspect": aspect,
        "adapter": None,
        "quantized": None,
    }
    return Model({}, description, notes=notes)


def _tower(values: dict[str, Any]) -> dict[str, Any]:
    name = str(values["mm_vision_tower"]).lower()
    layers = None if "mm_dense_connector_type" in values else [values.get("mm_vision_select_layer", -2)]
    scales = [1, 2, 3] if values.get("use_s2") or values.get("s2") else None
    if "eva" in name and "sig" not in name:
        raise CheckpointError("EVA towers are not read from upstream folders", name, "name the tower in a recipe")
    if "sig" in name:
        return {"_target_": "vlmrun.model.towers.siglip.Siglip", "path": "tower", "layers": layers, "scales": scales}
    feature = values.get("mm_vision_select_feature", "patch")
    clip = {"_target_": "vlmrun.model.towers.clip.Clip", "path": "tower"}
    return clip | {"layers": layers, "feature": feature, "scales": scales}


def _connector(values: dict[str, Any]) -> dict[str, Any]:
    kind = values.get("mm_projector_type", "linear")
    mlp = _MLP.fullmatch(kind)
    if "mm_dense_connector_type" in values and mlp:
        return {"_target_": DENSE, "kind": values["mm_dense_connector_type"], "depth": int(mlp[1])}
    if mlp:
        return {"_target_": f"{_CONNECTORS}.mlp.MLP", "depth": int(mlp[1])}
    if kind not in _TYPES:
        raise CheckpointError(f"no connector {kind!r}", "config.json: mm_projector_type", ", ".join(_TYPES))
    return dict(_TYPES[kind])


def projector_type(config: ModelConfig) -> str | None:
    """The `mm_projector_type` of a connector; None when upstream has none like it."""
    connector = config.connector
    given = {key: value for key, value in connector.arguments.items() if key != "weights" and value is not None}
    if connector.target in (DENSE, f"{_CONNECTORS}.mlp.MLP"):
        plain = not given.keys() - {"depth", "bias", "kind", "shallow"} and given.get("bias", True)
        depth = given.get("depth", 2)
        usual = list(given.get("shallow", Dense.shallow)) == list(Dense.shallow)
        if not plain or not usual:
            return None
        return "linear" if depth == 1 and connector.target != DENSE else f"mlp{depth}x_gelu"
    wanted = {"_target_": connector.target, **given}
    return next((name for name, target in _TYPES.items() if target == wanted), None)


def _tiles(values: dict[str, Any]) -> dict[str, Any]:
    return {"grids": values["image_grid_pinpoints"], "merge": values.get("mm_patch_merge_type", "flat")}


def values(model: Model, project: Any, tower: str) -> dict[str, Any]:
    """The config.json of a project, from that of the LLM.

    Args:
        tower: what `mm_vision_tower` says: a folder beside the config.
    """
    config, llm = model.config, model.json[LLM_CONFIG]
    assert config is not None
    known = llm["model_type"]
    kind = "Bunny" if project.name == "bunny" else "Llava"
    tiles = config.tiles
    mixed = {
        "architectures": [f"{kind}{families.find(known).architecture or ''}ForCausalLM"],
        "model_type": project.families.get(known, f"llava_{known}"),
        "mm_vision_tower": tower,
        "mm_projector_type": projector_type(config),
        "mm_hidden_size": _width(model),
        "use_mm_proj": True,
        "image_aspect_ratio": model.description.get("image_aspect", "square"),
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": config.max_length,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
    }
    if tiles is not None:
        mixed["image_grid_pinpoints"] = tiles.grids
    if project.name == "bunny":
        return llm | mixed | {"use_s2": bool(config.tower.arguments.get("scales")), "unfreeze_vision_tower": True}
    layers = config.tower.arguments.get("layers") or [-2]
    mixed |= {
        "mm_vision_select_layer": layers[0],
        "mm_vision_select_feature": config.tower.arguments.get("feature", "patch"),
        "mm_use_im_start_end": config.image_markers is not None,
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": True,  # the tower that is here counts, not the one of that name elsewhere
    }
    if config.connector.target == DENSE:
        mixed["mm_dense_connector_type"] = config.connector.arguments["kind"]
    if project.name != "kollava":
        mixed["mm_patch_merge_type"] = "flat" if tiles is None else tiles.merge
    return llm | mixed


def _width(model: Model) -> int:
    """Channels of the tower's features, all layers and scales together."""
    first = next((value.shape for value in model.part("connector").values() if len(value.shape) > 1), None)
    return int(first[1] if first else model.json[LLM_CONFIG]["hidden_size"])


def dtype_of(model: Model) -> str:
    """The type of the LLM's weights, in our words."""
    return dtype_name(next(value.dtype for value in model.part("llm").values()))
