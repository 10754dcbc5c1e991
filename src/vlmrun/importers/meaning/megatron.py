"""Flags of Megatron-LM and Pai-Megatron-Patch. Their models are built from sizes: parts are found by name where one is
said, and otherwise named by the user."""

from __future__ import annotations

import math

from vlmrun.importers import options
from vlmrun.importers.meaning.draft import Draft

_STYLES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "inverse-square-root": "inverse_sqrt"}
_DATA = ("train-data-path", "dataset-path", "data-path")
# Megatron's --language-model-type mistral_7b brings a wide connector without biases and prompts of its own.
WIDE = "pai_llava_mistral_7b"
_FREEZE = {"tower": ("freeze-ViT", "freeze-clip-vision-tower"), "llm": ("freeze-LM", "freeze-llm")}


def settle(draft: Draft) -> None:
    """All rules of the family."""
    for rule in (_batch, _schedule, _precision, _parallel, _recompute, _tuning, _parts, _data, _evaluation, _rest):
        rule(draft)


def _batch(draft: Draft) -> None:
    micro = draft.number_of("micro-batch-size" if "micro-batch-size" in draft.given else "batch-size", int)
    shared = (draft.number_of("tensor-model-parallel-size", int) or 1) * (
        draft.number_of("context-parallel-size", int) or 1
    )
    ranks = draft.settings["hardware.nodes"].value * draft.settings["hardware.ranks_per_node"].value
    whole = draft.number_of("global-batch-size", int) or (micro or 1) * max(ranks // shared, 1)
    draft.set("stage.micro_batch", micro, "micro-batch-size", "batch-size")
    draft.set("stage.global_batch", whole, "global-batch-size")


def _schedule(draft: Draft) -> None:
    _shape(draft)
    draft.set("stage.optim.min_lr", draft.number_of("min-lr"), "min-lr")
    draft.set("stage.optim.min_lr_ratio", 0.0, note="the lowest rate is named")
    most = draft.number_of("train-iters", int)
    if most is not None:
        draft.set("stage.epochs", None, note="train-iters alone decides the length")
        draft.set("stage.max_steps", most, "train-iters")
        draft.settle("epochs", "no effect", "train-iters decides the length")
    elif "epochs" in draft.given:
        draft.set("stage.epochs", draft.number_of("epochs"), "epochs")
    _warmup(draft, most)
    _weight_decay(draft)
    draft.set(
        "stage.optim.betas", [draft.number_of("adam-beta1"), draft.number_of("adam-beta2")], "adam-beta1", "adam-beta2"
    )
    name = draft.text("optimizer")
    draft.settle(
        "optimizer", *(("taken", "AdamW, as always") if name == "adam" else ("unsupported", f"AdamW, not {name}"))
    )


def _warmup(draft: Draft, most: int | None) -> None:
    updates, part = draft.number_of("lr-warmup-iters", int), draft.number_of("lr-warmup-fraction")
    length = draft.number_of("lr-decay-iters", int) or most
    draft.set("stage.optim.warmup_ratio", None, note="updates are named")
    if part is None:
        draft.set("stage.optim.warmup_steps", updates or 0, "lr-warmup-iters")
        return
    draft.settle("lr-warmup-iters", "no effect", "lr-warmup-fraction counts")
    if length is None:
        draft.set("stage.optim.warmup_ratio", part, "lr-warmup-fraction")
    elif round(part * length, 6) % 1 == 0:
        draft.set("stage.optim.warmup_steps", round(part * length), "lr-warmup-fraction", note=f"of {length} updates")
    else:
        why = f"{part * length:g} updates, in whole ones here"
        draft.differ("lr-warmup-fraction", "stage.optim.warmup_steps", math.ceil(part * length), why)


def _weight_decay(draft: Draft) -> None:
    style = draft.text("weight-decay-incr-style") or "constant"
    if style == "constant":
        draft.set("stage.optim.weight_decay", draft.number_of("weight-decay"), "weight-decay")
    else:
        draft.set("stage.optim.weight_decay", draft.number_of("start-weight-decay"), "start-weight-decay")
        draft.set("stage.optim.weight_decay_end", draft.number_of("end-weight-decay"), "end-weight-decay")
        draft.set("stage.optim.weight_decay_schedule", style, "weight-decay-incr-style")
    for name in ("weight-decay", "start-weight-decay", "end-weight-decay", "weight-decay-incr-style"):
        draft.settle(name, "no effect", f"weight-decay-incr-style {style}")


def _shape(draft: Draft) -> None:
    style = draft.text("lr-decay-style") or "linear"
    if style == "WSD":
        draft.set("stage.optim.schedule", "wsd", "lr-decay-style")
        draft.set("stage.optim.cooldown_steps", draft.number_of("lr-wsd-decay-iters", int), "lr-wsd-decay-iters")
        shape = (draft.text("lr-wsd-decay-style") or "exponential").replace("minus_sqrt", "one_minus_sqrt")
        draft.set("stage.optim.cooldown_shape", shape, "lr-wsd-decay-style")
    elif style in _STYLES:
        draft.set("stage.optim.schedule", _STYLES[style], "lr-decay-style")
    else:
        draft.differ("lr-decay-style", "stage.optim.schedule", "cosine", "there is no such schedule here")
    for name in ("lr-wsd-decay-iters", "lr-wsd-decay-style"):
        draft.settle(name, "no effect", f"lr-decay-style {style}")


def _precision(draft: Draft) -> None:
    half = "bf16" if draft.boolean("bf16") else "fp16" if draft.boolean("fp16") else "fp32"
    draft.set("hardware.precision", half, "bf16", "fp16")
    if "use-flash-attn" in draft.given:
        draft.set("hardware.attention", "flash_attention_2", "use-flash-attn")


def _parallel(draft: Draft) -> None:
    if draft.number_of("pipeline-model-parallel-size", int) in (None, 1):
        draft.settle("pipeline-model-parallel-size", "no effect", "one: no pipeline")
    else:
        draft.settle("pipeline-model-parallel-size", "unsupported", "ZeRO-3 shards the layers instead")
    tensor = draft.number_of("tensor-model-parallel-size", int) or 1
    if "use-distributed-optimizer" in draft.given and tensor > 1:
        draft.differ("use-distributed-optimizer", "stage.zero", 2, "ZeRO-1 in bf16 does not go with shared layers")
    else:
        draft.set("stage.zero", 1 if "use-distributed-optimizer" in draft.given else 2, "use-distributed-optimizer")
    if "optimizer-offload-policy" in draft.given:
        draft.set("stage.offload", "cpu", "optimizer-offload-policy")
    minutes = draft.number_of("distributed-timeout-minutes", int)
    if minutes:
        draft.set("hardware.timeout_seconds", minutes * 60, "distributed-timeout-minutes")


def _recompute(draft: Draft) -> None:
    every: bool | int = draft.text("recompute-granularity") == "full"
    blocks = draft.number_of("recompute-num-layers", int) if "recompute-num-layers" in draft.given else None
    if every and blocks and blocks > 1 and draft.text("recompute-method") == "uniform":
        every = blocks
    draft.set("stage.gradient_checkpointing", every, "recompute-granularity")
    for name in ("recompute-method", "recompute-num-layers"):
        draft.settle(name, "taken" if every else "no effect", f"stage.gradient_checkpointing: {every}")
    if "cpu-offloading" in draft.given:
        draft.set("stage.offload_checkpoints", True, "cpu-offloading")
    for name in ("attention-dropout", "hidden-dropout"):
        value = draft.number_of(name)
        zero = not value
        draft.settle(name, *(("no effect", "0: none") if zero else ("unsupported", "no units are dropped in the LLM")))


def _tuning(draft: Draft) -> None:
    only = draft.boolean("tune-mm-mlp-adapter")
    draft.kind = (
        "pretrain"
        if only or all(any(draft.boolean(flag) for flag in flags) for flags in _FREEZE.values())
        else "instruct"
    )
    for part, flags in _FREEZE.items():
        frozen = only or any(draft.boolean(flag) for flag in flags)
        draft.set(f"stage.tune.{part}", "freeze" if frozen else "full", *flags)
    draft.set("stage.tune.connector", "full", "tune-mm-mlp-adapter")


def _parts(draft: Draft) -> None:
    said = [
        draft.text(name) or "" for name in ("tokenizer-model", "language-model-type", "load", "pretrained-checkpoint")
    ]
    if draft.text("language-model-type") == "mistral_7b":
        draft.group("model", WIDE, "language-model-type")
        draft.settle("tokenizer-model", "no effect", "the tokenizer is that of the model's LLM")
        draft.set("stage.image_aspect", "pad_after", note="images are padded after they are normalized")
        draft.settle("tokenizer-prompt-format", "taken", f"the template of model {WIDE}")
    else:
        _named(draft, said)
    start = draft.text("load") or draft.text("pretrained-checkpoint")
    if start:
        draft.starts.append(start)
        draft.set("stage.init_from", start, "load", "pretrained-checkpoint", note="after vlmrun convert --to native")
    for name in ("decoder-seq-length", "max-padding-length"):
        if name in draft.given:
            draft.set("model.max_length", draft.number_of(name, int), name)
    draft.settle("version", "taken", "the model's template")
    draft.settle("tokenizer-prompt-format", "unsupported", "the template is the model's own")
    draft.settle("mm-use-im-start-end", "unsupported", "no tokens are added around images")


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


def _rest(draft: Draft) -> None:
    draft.writes = draft.text("save") or ""
    draft.settle("save", "taken", "the stage's name; later commands that read it start from this stage")
    if "tensorboard-dir" in draft.given:
        draft.set("tracking", ["tensorboard"], "tensorboard-dir", note="events are in the stage's folder")
