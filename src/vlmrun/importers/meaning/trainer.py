"""Flags of transformers' Trainer: schedule, precision, DeepSpeed, saving, evaluation, tracking."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers import options
from vlmrun.importers.launch import table
from vlmrun.importers.meaning.draft import Draft

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant", "constant": "constant"}
_OPTIMIZERS = {"adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_apex_fused", "adam", "adamw"}
_ENVIRONMENT = re.compile(r"(NCCL|GLOO|TORCH|CUDA|OMP)_[A-Z0-9_]+")
_TRACKERS = {"none": [], "wandb": ["wandb"], "tensorboard": ["tensorboard"], "all": ["tensorboard", "wandb"]}


def schedule(draft: Draft) -> None:
    """Length, warm-up and shape of the schedule."""
    name = draft.text("lr_scheduler_type") or "linear"
    if name in _SCHEDULES:
        draft.set("stage.optim.schedule", _SCHEDULES[name], "lr_scheduler_type")
    else:
        draft.differ("lr_scheduler_type", "stage.optim.schedule", "cosine", "there is no such schedule here")
    steps, ratio = draft.number_of("warmup_steps", int), draft.number_of("warmup_ratio")
    if name == "constant":
        draft.set(
            "stage.optim.warmup_ratio", 0.0, "warmup_ratio", "warmup_steps", note="constant has no warm-up upstream"
        )
    elif steps:
        draft.set("stage.optim.warmup_ratio", None, note="warmup_steps takes its place")
        draft.set("stage.optim.warmup_steps", steps, "warmup_steps")
        draft.settle("warmup_ratio", "no effect", "warmup_steps takes its place")
    else:
        draft.set("stage.optim.warmup_ratio", ratio, "warmup_ratio")
        draft.settle("warmup_steps", "no effect", "0: warmup_ratio counts")
    betas = [draft.number_of("adam_beta1"), draft.number_of("adam_beta2")]
    draft.set("stage.optim.betas", betas, "adam_beta1", "adam_beta2")
    epochs, most = draft.number_of("num_train_epochs"), draft.number_of("max_steps", int)
    if most is not None and most > 0:
        draft.set("stage.max_steps", most, "max_steps")
        draft.settle("num_train_epochs", "no effect", "max_steps alone decides the length")
        draft.notes.append(LENGTH)
        return
    draft.set("stage.epochs", epochs, "num_train_epochs")
    draft.settle("max_steps", "no effect", "not positive: num_train_epochs decides the length")


LENGTH = "max_steps alone decides the length upstream; raise stage.STAGE.epochs where your data is gone through again"


def precision(draft: Draft) -> None:
    """bf16, fp16 or neither; how attention is computed; what the script exports to the ranks."""
    half = "bf16" if draft.boolean("bf16") else "fp16" if draft.boolean("fp16") else "fp32"
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


def deepspeed(draft: Draft) -> None:
    """ZeRO stage, offloading and clipping, from the JSON that is named, or FSDP."""
    path, fsdp = draft.text("deepspeed"), draft.text("fsdp") if "fsdp" in draft.given else None
    clip = draft.number_of("max_grad_norm")
    if path is None and fsdp is None:
        draft.set("stage.optim.max_grad_norm", clip, "max_grad_norm")
        draft.set("stage.zero", 2, note="no DeepSpeed file: the same arithmetic, its states sharded")
    elif path is not None:
        _from_json(draft, path, clip)
        draft.settle("fsdp", "no effect", "DeepSpeed is named too")
    elif fsdp is not None:
        _fsdp(draft, fsdp, clip)


def _fsdp(draft: Draft, text: str, clip: float | None) -> None:
    words = set(text.split())
    draft.set("stage.optim.max_grad_norm", clip, "max_grad_norm")
    if "full_shard" in words and draft.kind == "pretrain" and draft.boolean("mm_use_im_start_end"):
        draft.differ("fsdp", "stage.zero", 2, "FSDP would shard the embedding whose rows are trained")
    elif words & {"full_shard", "shard_grad_op"}:
        draft.set("stage.engine", "fsdp", "fsdp")
        draft.set("stage.zero", 3 if "full_shard" in words else 2, "fsdp")
    else:
        draft.settle("fsdp", "unsupported", "FSDP runs as full_shard or shard_grad_op; ZeRO-2 takes its place")


def _from_json(draft: Draft, path: str, clip: float | None) -> None:
    text = draft.read_file(path)
    name = posixpath.basename(path).removesuffix(".json")
    published = table("flags")["deepspeed_files"].get(name)
    if text is not None:
        try:
            facts = _facts(json.loads(text), clip)
        except (ValueError, AttributeError, TypeError) as error:
            draft.problems.append(
                Problem(f"{path} is no DeepSpeed JSON: {error}", draft.where("deepspeed"), "correct it")
            )
            return
    elif published is not None:
        facts = {"offload": "none", "schedule": False, **published}
        if published["clip"] == 1.0:
            facts["clip"] = clip
        draft.notes.append(f"{path} is not beside the script: taken as {name}.json that upstream ships")
    else:
        draft.problems.append(
            Problem(
                f"the DeepSpeed file {path} is not there", draft.where("deepspeed"), "give its folder: --root FOLDER"
            )
        )
        return
    zero = facts["stage"]
    if zero == 3 and draft.kind == "qlora":
        draft.differ("deepspeed", "stage.zero", 2, "ZeRO-3 would cut the packed weights; upstream stops there as well")
    elif zero == 3 and draft.kind == "pretrain" and draft.boolean("mm_use_im_start_end"):
        draft.differ("deepspeed", "stage.zero", 2, "tokens cannot be added to a partitioned embedding")
    else:
        draft.set("stage.zero", zero, "deepspeed", note=f"{name}.json" if text is None else "")
    draft.set("stage.offload", facts["offload"], "deepspeed")
    draft.set("stage.optim.max_grad_norm", facts["clip"], "deepspeed", "max_grad_norm",
              note="the file does not clip" if facts["clip"] == 0.0 else "")  # fmt: skip
    if bucket := facts.get("bucket"):
        draft.set("stage.deepspeed.reduce_bucket_size", bucket, "deepspeed")
        draft.set("stage.deepspeed.allgather_bucket_size", bucket, "deepspeed")
    if facts["schedule"]:
        draft.notes.append(f"{name}.json brings a scheduler, so that upstream warmed up and stayed constant: "
                           "compat.offload_schedule (--quirks)")  # fmt: skip
        if draft.options.quirks:
            draft.set("stage.compat.offload_schedule", True, note=f"{name}.json brings a scheduler")


def _facts(config: dict[str, Any], clip: float | None) -> dict[str, Any]:
    """What of a DeepSpeed JSON a stage says itself."""
    zero = config.get("zero_optimization", {})
    optimizer_on = (zero.get("offload_optimizer") or {}).get("device", "none")
    clipping = config.get("gradient_clipping", 0.0)
    return {
        "stage": int(zero.get("stage", 0)),
        "offload": optimizer_on if optimizer_on in ("cpu", "nvme") else "none",
        "clip": clip if clipping == "auto" else float(clipping),
        "schedule": "scheduler" in config,
    }


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
            draft.settle(name, "unsupported", entry["without"])
        elif "key" in entry and (name in draft.given or ("default" in entry and not entry.get("ours"))):
            value = draft.boolean(name) if entry["kind"] == "bool" else draft.number_of(name, kinds[entry["kind"]])
            if value is not None:
                draft.set(entry["key"], value, name)
        elif "key" in entry and "default" in entry and options.preset(entry["key"]) != entry["default"]:
            draft.defaults.append((name, entry["default"], entry["key"]))


RULES = (schedule, precision, optimizer, deepspeed, saving, evaluation, tracking, naming)
