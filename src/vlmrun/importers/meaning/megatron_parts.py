"""Model and data of Megatron's flags. Its models are built from sizes: parts are found by name where one is said."""

from __future__ import annotations

import math

from vlmrun.importers import options
from vlmrun.importers.meaning.draft import Draft

_DATA = ("train-data-path", "dataset-path", "data-path")
# Megatron's --language-model-type mistral_7b brings a wide connector without biases and prompts of its own.
WIDE = "pai_llava_mistral_7b"


def _parts(draft: Draft) -> None:
    said = [
        draft.text(name) or "" for name in ("tokenizer-model", "language-model-type", "load", "pretrained-checkpoint")
    ]
    if draft.text("language-model-type") == "mistral_7b":
        draft.group("model", WIDE, "language-model-type")
        draft.settle("tokenizer-model", "no effect", "the tokenizer is that of the model's LLM")
        draft.set("stage.image_aspect", "pad_after", note="images are padded after they are normalized")
        draft.settle("tokenizer-prompt-format", "taken", f"the template of model {WIDE}")
        _first_weights(draft)
    else:
        _named(draft, said)
        draft.settle("tokenizer-prompt-format", "unsupported", "the template is the model's own")
        draft.settle("init-method-std", "unsupported", "a new connector starts as PyTorch initializes it")
    start = draft.text("load") or draft.text("pretrained-checkpoint")
    if start:
        draft.starts.append(start)
        draft.set("stage.init_from", start, "load", "pretrained-checkpoint", note="after vlmrun convert --to native")
    for name in ("decoder-seq-length", "max-padding-length"):
        if name in draft.given:
            draft.set("model.max_length", draft.number_of(name, int), name)
    draft.settle("version", "taken", "the model's template")
    draft.settle("mm-use-im-start-end", "unsupported", "no tokens are added around images")


def _first_weights(draft: Draft) -> None:
    """Normal weights; those of the last layer are scaled down with the depth of the LLM, as Megatron's are."""
    spread, layers = draft.number_of("init-method-std"), draft.number_of("num-layers", int)
    if not layers or layers < 1 or spread is None:
        draft.settle("init-method-std", "unknown", "the number of layers is not known")
    else:
        scaled = round(spread / math.sqrt(2 * layers), 8)
        draft.set("model.connector.init_std", [spread, scaled], "init-method-std", note=f"of {layers} layers")


def _named(draft: Draft, said: list[str]) -> None:
    """Parts by the names that are said."""
    llm = next((found for name in said if name and (found := options.option("llm", name))), None)
    if llm is None and any("mistral" in name.lower() for name in said):
        llm = "mistral_7b_instruct"
    draft.group("llm", llm or "hf", "tokenizer-model", "language-model-type")
    path = draft.text("vision-tower")
    draft.group("tower", (options.option("tower", path) if path else None) or "clip_l_336", "vision-tower")
    kind = draft.text("mm-projector-type") or "mlp2x_gelu"
    draft.group("connector", kind if kind in ("linear", "mlp2x_gelu") else "mlp2x_gelu", "mm-projector-type")
    draft.notes.append("a Megatron model is built from sizes: compare model/llm, tower and connector with yours")
    if "mm-vision-select-layer" in draft.given:
        draft.set("model.tower.layers", [draft.number_of("mm-vision-select-layer", int)], "mm-vision-select-layer")


def _data(draft: Draft) -> None:
    name = next((flag for flag in _DATA if flag in draft.given), None)
    path = " ".join(draft.given[name].values) if name else None
    shards = draft.text("dataloader-type") == "external"
    kept = {"format": "energon", "split": "train"} if shards else {}
    draft.data["train"] = {
        "annotations": path,
        "images": draft.text("image-folder"),
        "source": draft.where(name or "train-data-path"),
        "images_source": draft.where("image-folder"),
        **kept,
    }
    for flag in _DATA:
        draft.settle(flag, "taken", f"data.NAME.annotations: {path}")
    draft.settle("image-folder", "taken", "data.NAME.images")
    draft.settle("dataloader-type", "taken" if shards else "no effect",
                 "data.NAME.format: energon" if shards else "records are read as LLaVA JSON")  # fmt: skip
    if shards:
        _order(draft)


def _order(draft: Draft) -> None:
    """The samples of each update as megatron-energon's loader gives them."""
    shared = (draft.number_of("tensor-model-parallel-size", int) or 1) * (
        draft.number_of("context-parallel-size", int) or 1
    )
    ranks = draft.settings["hardware.nodes"].value * draft.settings["hardware.ranks_per_node"].value
    workers, micro = draft.number_of("num-workers", int), draft.settings["stage.micro_batch"].value
    order = {"name": "energon4", "ranks": max(ranks // shared, 1), "workers": workers, "micro_batch": micro,
             "slice_samples": 100, "buffer": 100}  # fmt: skip
    draft.set("stage.order", order, note="megatron-energon 4 with its defaults; name: energon7 for version 7")


def _evaluation(draft: Draft) -> None:
    flags = ("eval-interval", "eval-iters", "valid-data-path", "valid-dataset-path")
    name = next((flag for flag in flags[2:] if flag in draft.given), None)
    if name is None:
        for flag in flags:
            draft.settle(flag, "no effect", "the script names no data to evaluate on")
        return
    shards = draft.text("dataloader-type") == "external"
    draft.data["eval"] = {
        "annotations": " ".join(draft.given[name].values),
        "source": draft.where(name),
        **({"format": "energon", "split": "val"} if shards else {}),
    }
    samples = (draft.number_of("eval-iters", int) or 0) * draft.settings["stage.global_batch"].value
    wanted = {"steps": draft.number_of("eval-interval", int), "data": ["@eval"], "max_samples": samples or None,
              "generate": 0, "max_new_tokens": 1}  # fmt: skip
    draft.set("stage.eval", wanted, *flags)


RULES = (_parts, _data, _evaluation)
