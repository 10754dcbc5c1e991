"""The model of a command: LLM, tower, connector, template, tokens, length, and how images are cut."""

from __future__ import annotations

import re
from typing import Any

from vlmrun.errors import Problem, closest, suggest
from vlmrun.importers import options
from vlmrun.importers.launch import table
from vlmrun.importers.meaning.draft import Draft, Setting

_WHOLE = re.compile(r"llava|bunny|minicpm-(llama3-)?v|cerule|spatialbot|vila", re.IGNORECASE)
_CONNECTORS = {"linear": "linear", "mlp2x_gelu": "mlp2x_gelu", "mlp3x_gelu": "mlp3x_gelu", "identity": "identity",
               "ldp": "ldp", "minigpt": "minigpt", "vanilla": "vanilla", "sppv1": "spp_v1", "sppv2": "spp_v2",
               "sppv3": "spp_v3"}  # fmt: skip
MISSING = "???"
_TOWERS = (("siglip", "siglip"), ("dinov2", "dinov2"), ("clip", "clip"))


def parts(draft: Draft) -> None:
    """Which LLM, tower and connector; a whole model or an earlier command's result is what the stage begins from."""
    if draft.family == "minicpm":
        _minicpm(draft)
        return
    _llm(draft)
    if draft.family != "hf":
        _tower(draft)
        _connector(draft)


def _minicpm(draft: Draft) -> None:
    path = draft.text("model_name_or_path") or ""
    if options.plain(path) not in ("minicpmllama3v25", "minicpmv25"):
        what = f"no published model for {path!r}: MiniCPM-V 2.5 alone has an entry"
        fix = "convert it (docs/guides/convert.md) and write a conf/model entry"
        draft.problems.append(Problem(what, draft.where("model_name_or_path"), fix))
        draft.settle("model_name_or_path", "unsupported", "no such model")
    draft.group("model", "minicpm_v25", "model_name_or_path")
    draft.notes.append("the published MiniCPM-V 2.5 is taken apart first: docs/guides/minicpm.md")


def _llm(draft: Draft) -> None:
    path = draft.text("model_name_or_path")
    if path is None:
        draft.settle("model_type", "unknown", "the model's path is not known")
        return
    draft.starts.append(path)
    kind = draft.text("model_type") if "model_type" in draft.given else None
    if kind is not None:
        types = table("flags")["model_types"]
        if kind not in types:
            near = closest(kind, types)
            why = f"no such model type here{f' ({near} is near)' if near else ''}: read as any causal LM"
            draft.settle("model_type", "unsupported", why)
        draft.group("llm", types.get(kind, "hf"), "model_type")
        draft.set("model.llm.path", path, "model_name_or_path")
        return
    found = options.option("llm", path)
    if found is None and _WHOLE.search(path.rstrip("/").rpartition("/")[2]) and draft.family != "hf":
        _whole(draft, path)
        return
    draft.group("llm", found or "hf", "model_name_or_path")
    draft.set("model.llm.path", path, "model_name_or_path")


def _whole(draft: Draft, path: str) -> None:
    """A finished model is tuned further."""
    near = [
        model
        for model in options.models()
        if options.plain(path).startswith(options.plain(model.name).replace("llava15", "llavav15"))
    ]
    if near:
        draft.group("llm", near[0].parts["llm"])
    else:
        draft.groups["llm"] = draft.groups.get("llm") or _unnamed(draft, "llm")
    draft.set("stage.init_from", path, "model_name_or_path", note="a finished model; its LLM is a guess by its name")


def _unnamed(draft: Draft, part: str) -> Setting:
    draft.notes.append(f"the {part} of the model it starts from is not named in the script: give model.{part}.path")
    return Setting(f"model/{part}", "hf", "not named in the script")


def _tower(draft: Draft) -> None:
    path = draft.text("vision_tower") if "vision_tower" in draft.given else None
    if path is None:
        fix = "import a script that names a tower; --env NAME=VALUE where it is a variable"
        draft.problems.append(
            Problem("no --vision_tower: a model without one is a plain LLM", draft.where("vision_tower"), fix)
        )
        return
    s2 = draft.boolean("use_s2") if "use_s2" in draft.table else False
    name = options.plain(path)
    found = options.option("tower", path)
    if "eva" in name and "336" in name:
        found = "eva02_clip_l_336"
    if found is None:
        found = next((known for word, known in _TOWERS if word in name), None)
    if found is None:
        found = _missing(draft, "tower", path, "vision_tower", {"path": MISSING, "layers": [-2]})
    if s2:
        found = f"{found}_s2" if f"{found}_s2" in options.paths("tower") else found
        draft.set("model.tower.scales", [1, 2, 3], "use_s2")
    draft.settle("use_s2", "no effect", "the tower sees one size")
    draft.group("tower", found, "vision_tower")
    if found != "eva02_clip_l_336":
        draft.set("model.tower.path", path, "vision_tower")
    _layers(draft, found)


def _layers(draft: Draft, tower: str) -> None:
    layer = draft.number_of("mm_vision_select_layer", int)
    if draft.family == "denseconnector":
        if layer == -2:
            draft.settle("mm_vision_select_layer", "taken", "the dense connector's own layers: -2 among them")
        else:
            draft.settle("mm_vision_select_layer", "unsupported", "the dense connector takes layer -2")
    elif layer is not None:
        draft.set("model.tower.layers", [layer], "mm_vision_select_layer")
    feature = draft.text("mm_vision_select_feature")
    if "clip" in tower and "eva" not in tower:
        draft.set("model.tower.feature", feature, "mm_vision_select_feature")
    draft.settle("mm_vision_select_feature", "no effect", "the tower has no class token")


def _connector(draft: Draft) -> None:
    kind = draft.text("mm_projector_type") or "linear"
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    weights = draft.text("pretrain_mm_mlp_adapter") if "pretrain_mm_mlp_adapter" in draft.given else None
    if weights:
        draft.starts.insert(0, weights)
        draft.set("model.connector.weights", weights, "pretrain_mm_mlp_adapter")
    if draft.family == "denseconnector":
        which = draft.text("mm_dense_connector_type") or "dci"
        draft.group("connector", f"dense_{which}", "mm_dense_connector_type")
        draft.set("model.connector.depth", int(depth[1]) if depth else 1, "mm_projector_type")
    elif kind in _CONNECTORS:
        draft.group("connector", _CONNECTORS[kind], "mm_projector_type")
    elif depth:
        draft.group("connector", "mlp2x_gelu", "mm_projector_type")
        draft.set("model.connector.depth", int(depth[1]), "mm_projector_type")
    else:
        draft.group("connector", _missing(draft, "connector", kind, "mm_projector_type", {"weights": None}))


def _missing(draft: Draft, part: str, name: str, flag: str, values: dict[str, Any]) -> str:
    """An entry of its own for a part that nothing of ours fits: what it lacks is named in it."""
    near = closest(name, [*options.paths(part), *(_CONNECTORS if part == "connector" else ())])
    option = re.sub(r"[^a-z0-9]+", "_", name.rstrip("/").rpartition("/")[2].lower()).strip("_") or part
    draft.own_parts[f"{part}/{option}"] = {"_target_": MISSING, **values}
    why = f"no {part} fits {name!r}" + (f" ({near} is near)" if near else "")
    draft.settle(flag, "unsupported", f"{why}: model/{part}/{option}.yaml is written without its class")
    return option


def template(draft: Draft) -> None:
    """How turns become text."""
    flag = "llm_type" if draft.family == "minicpm" else "version"
    if flag not in draft.table:
        return
    name = draft.text(flag)
    if name is None:
        return
    names = table("flags")["templates"].get(draft.family, table("flags")["templates"]["llava"])
    if name not in names:
        if draft.family == "minicpm":
            draft.problems.append(
                Problem(f"no template for llm_type {name!r}", draft.where(flag), suggest(name, names))
            )
            draft.settle(flag, "unsupported", "no template")
            return
        draft.differ(flag, "stage.template", "vicuna_v1", "upstream takes v1 for a name it does not know")
        return
    ours = names[name]
    if "mpt" in (draft.text("model_name_or_path") or "").lower() and ours == "vicuna_v1":
        ours = "mpt_v0"
    draft.set("stage.template", ours, flag)
    if name == "v0":
        draft.notes.append("--version v0 trained the v1 format after 2023-10-24: compat.v0_is_v1 (--quirks)")
        if draft.options.quirks:
            draft.set("stage.compat.v0_is_v1", True, note="upstream's quirk")


def markers(draft: Draft) -> None:
    """Tokens around images."""
    if "mm_use_im_start_end" not in draft.table:
        return
    used = draft.boolean("mm_use_im_start_end")
    draft.set("model.image_markers", ["<im_start>", "<im_end>"] if used else None, "mm_use_im_start_end")
    if draft.boolean("mm_use_im_patch_token"):
        draft.settle("mm_use_im_patch_token", "no effect", "upstream adds <im_patch> and never uses it")
    else:
        draft.settle("mm_use_im_patch_token", "taken", "no such token, as always")


def length(draft: Draft) -> None:
    """Tokens of a sample."""
    if "model_max_length" in draft.table:
        draft.set("model.max_length", draft.number_of("model_max_length", int), "model_max_length")


def tiles(draft: Draft) -> None:
    """Padding, tiles or slices."""
    if draft.family == "minicpm":
        draft.set("stage.image_aspect", "slices", note="MiniCPM-V cuts every image")
        draft.set("model.tiles.max_slices", draft.number_of("max_slice_nums", int), "max_slice_nums")
        if "scale_resolution" in draft.given:
            draft.set("model.tiles.resolution", draft.number_of("scale_resolution", int), "scale_resolution")
        return
    if "image_aspect_ratio" not in draft.table:
        return
    aspect = draft.text("image_aspect_ratio")
    if aspect in ("square", "pad"):
        draft.set("stage.image_aspect", aspect, "image_aspect_ratio")
    elif aspect and aspect.startswith("anyres") and draft.family == "next":
        _anyres(draft)
    else:
        draft.differ(
            "image_aspect_ratio", "stage.image_aspect", "square", "upstream's training knows pad; all else is square"
        )
    draft.settle("image_grid_pinpoints", "no effect", "no tiles")
    draft.settle("mm_patch_merge_type", "no effect", "no tiles")


def _anyres(draft: Draft) -> None:
    grids = [
        [int(w), int(h)] for w, h in re.findall(r"[\[(](\d+),\s*(\d+)[\])]", draft.text("image_grid_pinpoints") or "")
    ]
    merge = draft.text("mm_patch_merge_type") or "flat"
    if grids and merge in ("flat", "spatial", "spatial_unpad"):
        draft.set("stage.image_aspect", "anyres", "image_aspect_ratio")
        draft.set("model.tiles.grids", grids, "image_grid_pinpoints")
        draft.set("model.tiles.merge", merge, "mm_patch_merge_type")
    else:
        draft.differ(
            "image_aspect_ratio", "stage.image_aspect", "square", "tiles by a range or with a limit are not there"
        )
        draft.settle("image_grid_pinpoints", "unsupported", "a range of grids: no tiles")
        draft.settle("mm_patch_merge_type", "unsupported", "no tiles")


RULES = (parts, template, markers, length, tiles)
