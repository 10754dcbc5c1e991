"""Flags of Megatron-LM and Pai-Megatron-Patch. Their models are built from sizes: parts are found by name where one is
said, and otherwise named by the user."""

from __future__ import annotations

import math

from vlmrun.importers.meaning import megatron_parts
from vlmrun.importers.meaning.draft import Draft

_STYLES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "inverse-square-root": "inverse_sqrt"}
_FREEZE = {"tower": ("freeze-ViT", "freeze-clip-vision-tower"), "llm": ("freeze-LM", "freeze-llm")}


def settle(draft: Draft) -> None:
    """All rules of the family."""
    for rule in (_batch, _schedule, _precision, _parallel, _recompute, _tuning, *megatron_parts.RULES, _rest):
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


def _rest(draft: Draft) -> None:
    draft.writes = draft.text("save") or ""
    draft.settle("save", "taken", "the stage's name; later commands that read it start from this stage")
    if "tensorboard-dir" in draft.given:
        draft.set("tracking", ["tensorboard"], "tensorboard-dir", note="events are in the stage's folder")
