"""Flags of transformers' Trainer: precision, saving, evaluation, tracking."""

from __future__ import annotations

import re
from typing import Any

from vlmrun.importers import options
from vlmrun.importers.meaning import schedule
from vlmrun.importers.meaning.draft import Draft, Verdict
from vlmrun.importers.meaning.sharding import deepspeed

_OFF = [(word,) for word in ("False", "false", "no", "none", "None", "0", "0.0", "0.")]
_OPTIMIZERS = {"adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_apex_fused", "adam", "adamw"}
_ENVIRONMENT = re.compile(r"(NCCL|GLOO|TORCH|CUDA|OMP)_[A-Z0-9_]+")
_TRACKERS = {"none": [], "wandb": ["wandb"], "tensorboard": ["tensorboard"], "all": ["tensorboard", "wandb"]}


def precision(draft: Draft) -> None:
    """bf16, fp16 or neither; how attention is computed; what the script exports to the ranks."""
    half = "bf16" if draft.boolean("bf16") else "fp16" if draft.boolean("fp16") else "fp32"
    mixed = draft.accelerate.get("mixed_precision")
    if half == "fp32" and mixed in ("bf16", "fp16"):
        draft.set("hardware.precision", mixed, note="accelerate's mixed_precision")
        half = mixed
    draft.set("hardware.precision", half, "bf16", "fp16")
    attention = draft.text("attn_implementation")
    if attention in ("eager", "sdpa", "flash_attention_2"):
        draft.set("hardware.attention", attention, "attn_implementation")
    elif attention:
        draft.differ("attn_implementation", "hardware.attention", "sdpa", "there is no such attention here")
    if "xformers" in draft.launch.entry:
        draft.set("hardware.attention", "xformers", note=f"entry {draft.launch.entry}")
    if half != "bf16" and draft.family in ("llava", "kollava", "bunny", "denseconnector"):
        draft.notes.append("upstream runs the tower in fp16 whenever bf16 is off: compat.fp16_tower (--quirks)")
        if draft.options.quirks:
            draft.set("stage.compat.fp16_tower", True, note="upstream's quirk")
    for name, value in draft.launch.command.env.items():
        if _ENVIRONMENT.fullmatch(name) and name not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
            draft.set(f"hardware.env.{name}", int(value) if value.isdecimal() else value, note="exported by the script")


def optimizer(draft: Draft) -> None:
    """AdamW is all there is."""
    name = draft.text("optim") if "optim" in draft.table else draft.text("optimizer")
    flag = "optim" if "optim" in draft.table else "optimizer"
    if name in _OPTIMIZERS:
        draft.settle(flag, "taken", "AdamW, as always")
    else:
        draft.settle(flag, "unsupported", f"AdamW in 32 bits takes the place of {name}")


def saving(draft: Draft) -> None:
    """Checkpoints are written by steps."""
    strategy = draft.text("save_strategy")
    if strategy == "steps":
        draft.settle("save_strategy", "taken", "always by steps")
    else:
        draft.settle("save_strategy", "unsupported", "a checkpoint every save_steps updates is kept for resuming")
    if "save_steps" in draft.given and strategy == "steps":
        draft.set("stage.save_steps", draft.number_of("save_steps", int), "save_steps")
    draft.settle("save_steps", "no effect", f"save_strategy {strategy}")


def evaluation(draft: Draft) -> None:
    """Held-out loss during training, where there is data for it."""
    flag = "eval_strategy" if "eval_strategy" in draft.given else "evaluation_strategy"
    strategy = draft.text(flag)
    data = draft.text("eval_data_path") if "eval_data_path" in draft.table else None
    rest = ("eval_steps", "do_eval", "eval_data_path", "load_best_model_at_end", "metric_for_best_model")
    if strategy == "steps" and data is not None:
        draft.data["eval"] = {"annotations": data, "source": draft.where("eval_data_path")}
        steps = draft.number_of("eval_steps", int) or draft.number_of("logging_steps", int) or 500
        wanted = {"steps": steps, "data": ["@eval"], "max_samples": None, "generate": 0, "max_new_tokens": 64}
        draft.set("stage.eval", wanted, "eval_steps", flag, "eval_data_path", "do_eval")
        if draft.boolean("load_best_model_at_end"):
            draft.set("stage.keep_best", "loss", "load_best_model_at_end", "metric_for_best_model")
        for name in rest:
            draft.settle(name, "no effect", "evaluation runs by steps")
        return
    if strategy == "no":
        draft.set("stage.eval", None, flag)
    elif strategy == "epoch" and data is not None:
        draft.settle(flag, "unsupported", "no evaluation during training; stage.eval.steps asks for one by steps")
    else:
        draft.settle(flag, "no effect", "the script names no data to evaluate on")
    for name in (*rest, "eval_strategy", "evaluation_strategy"):
        draft.settle(name, "no effect", "nothing is evaluated during training")


def sampling(draft: Draft) -> None:
    """transformers 5: at random, by length, or in order."""
    if "train_sampling_strategy" in draft.given:
        random = draft.text("train_sampling_strategy") == "random"
        verdict: Verdict = "no effect" if random else "unsupported"
        draft.settle("train_sampling_strategy", verdict, "samples come in random order")


def tracking(draft: Draft) -> None:
    """Trackers; wandb stays offline."""
    if "report_to" not in draft.given:
        return
    words = [word for value in draft.given["report_to"].values for word in value.split(",")]
    unknown = [word for word in words if word not in _TRACKERS]
    found = [name for word in words for name in _TRACKERS.get(word, [])]
    note = "offline; wandb_online uses the network" if "wandb" in found else ""
    draft.set("tracking", list(dict.fromkeys(found)), "report_to", note=note)
    if unknown:
        draft.settle("report_to", "unsupported", f"nothing is sent to {', '.join(unknown)}")


def naming(draft: Draft) -> None:
    """Where results lie: by the stage's name and key, not by a path."""
    draft.writes = draft.text("output_dir") or ""
    draft.settle("output_dir", "taken", "the stage's name; later commands that read it start from this stage")
    if "run_name" in draft.given:
        draft.settle("run_name", "no effect", "a run is named after its recipe; name=... gives another")


def direct(draft: Draft) -> None:
    """Flags that are one key each, have no effect, or are not supported, by the table."""
    kinds: dict[str, Any] = {"int": int, "float": float}
    for name, entry in draft.table.items():
        if "no_effect" in entry:
            draft.settle(name, "no effect", entry["no_effect"])
        elif "without" in entry:
            off = name in draft.given and "zero" not in entry and draft.given[name].values[:1] in _OFF
            draft.settle(name, *(("no effect", "off") if off else ("unsupported", entry["without"])))
        elif "key" in entry and (name in draft.given or ("default" in entry and not entry.get("ours"))):
            value = draft.boolean(name) if entry["kind"] == "bool" else draft.number_of(name, kinds[entry["kind"]])
            if value is not None:
                draft.set(entry["key"], value, name)
        elif "key" in entry and "default" in entry and options.preset(entry["key"]) != entry["default"]:
            draft.defaults.append((name, entry["default"], entry["key"]))


RULES = (*schedule.RULES, precision, optimizer, deepspeed, saving, evaluation, sampling, tracking, naming)
