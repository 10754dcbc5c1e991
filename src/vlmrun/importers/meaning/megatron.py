"""Flags of Megatron-LM and Pai-Megatron-Patch. Their models are built from sizes: parts are found by name where one is
said, and otherwise named by the user."""

from __future__ import annotations

from vlmrun.importers import options
from vlmrun.importers.meaning.draft import Draft

_FREEZE = {"tower": ("freeze-ViT", "freeze-clip-vision-tower"), "llm": ("freeze-LM", "freeze-llm")}


def settle(draft: Draft) -> None:
    """All rules of the family."""
    for rule in (_batch, _schedule, _precision, _parallel, _recompute, _tuning, _parts, _data, _rest):
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
    style = draft.text("lr-decay-style")
    if style in ("cosine", "linear", "constant"):
        draft.set("stage.optim.schedule", style, "lr-decay-style")
    else:
        draft.differ("lr-decay-style", "stage.optim.schedule", "cosine", "there is no such schedule here")
    top, low = draft.number_of("lr"), draft.number_of("min-lr")
    if top:
        draft.set("stage.optim.min_lr_ratio", round((low or 0.0) / top, 6), "min-lr", note="a share of the rate here")
    updates, share = draft.number_of("lr-warmup-iters", int), draft.number_of("lr-warmup-fraction")
    if share is not None:
        draft.set("stage.optim.warmup_ratio", share, "lr-warmup-fraction")
        draft.settle("lr-warmup-iters", "no effect", "lr-warmup-fraction counts")
    else:
        draft.set("stage.optim.warmup_ratio", None, note="updates are named")
        draft.set("stage.optim.warmup_steps", updates or 0, "lr-warmup-iters")
    draft.set(
        "stage.optim.betas", [draft.number_of("adam-beta1"), draft.number_of("adam-beta2")], "adam-beta1", "adam-beta2"
    )
    name = draft.text("optimizer")
    draft.settle(
        "optimizer", *(("taken", "AdamW, as always") if name == "adam" else ("unsupported", f"AdamW, not {name}"))
    )


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
    draft.set("stage.gradient_checkpointing", draft.text("recompute-granularity") == "full", "recompute-granularity")
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


def _data(draft: Draft) -> None:
    name = next((flag for flag in ("train-data-path", "dataset-path", "data-path") if flag in draft.given), None)
    path = " ".join(draft.given[name].values) if name else None
    where = draft.where(name) if name else draft.where("train-data-path")
    draft.data["train"] = {"annotations": path, "images": draft.text("image-folder"), "source": where,
                           "images_source": draft.where("image-folder")}  # fmt: skip
    for flag in ("train-data-path", "dataset-path", "data-path"):
        draft.settle(flag, "taken", f"data.NAME.annotations: {path}")
    draft.settle("image-folder", "taken", "data.NAME.images")
    draft.notes.append("records are read as LLaVA JSON: energon folders are another format")


def _rest(draft: Draft) -> None:
    for name in ("eval-interval", "eval-iters", "valid-data-path", "valid-dataset-path"):
        draft.settle(name, "unsupported", "nothing is evaluated during training; stage.eval asks for it")
    draft.writes = draft.text("save") or ""
    draft.settle("save", "taken", "the stage's name; later commands that read it start from this stage")
