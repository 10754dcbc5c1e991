"""How states are sharded: a DeepSpeed JSON, accelerate's options, or FSDP."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers.launch import table
from vlmrun.importers.meaning.draft import Draft


def deepspeed(draft: Draft) -> None:
    """ZeRO stage, offloading and clipping, from the JSON that is named, or FSDP."""
    path = draft.text("deepspeed") or draft.accelerate.get("deepspeed_config_file")
    fsdp = draft.text("fsdp") if "fsdp" in draft.given else None
    clip = draft.number_of("max_grad_norm")
    if not path:
        path = None
        draft.settle("deepspeed", "no effect", "no file is named")
    if path is None and draft.accelerate.get("zero_stage") in ("0", "1", "2", "3"):
        _from_accelerate(draft, clip)
    elif path is None and fsdp is None:
        draft.set("stage.optim.max_grad_norm", clip, "max_grad_norm")
        draft.set("stage.zero", 2, note="no DeepSpeed file: the same arithmetic, its states sharded")
    elif path is not None:
        _from_json(draft, path, clip)
        draft.settle("fsdp", "no effect", "DeepSpeed is named too")
    elif fsdp is not None:
        _fsdp(draft, fsdp, clip)


def _from_accelerate(draft: Draft, clip: float | None) -> None:
    """DeepSpeed as accelerate's own options say it."""
    values, note = draft.accelerate, "accelerate's DeepSpeed options"
    offload = values.get("offload_optimizer_device", "none")
    own = values.get("gradient_clipping", "")
    parameters = values.get("offload_param_device", "none")
    if values["zero_stage"] == "3" and parameters != offload:
        draft.set("stage.deepspeed.offload_param", parameters if parameters in ("cpu", "nvme") else "none", note=note)
    draft.set("stage.zero", int(values["zero_stage"]), note=note)
    draft.set("stage.offload", offload if offload in ("cpu", "nvme") else "none", note=note)
    draft.set("stage.optim.max_grad_norm", float(own) if re.fullmatch(r"\d+(\.\d+)?", own) else clip, "max_grad_norm")


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
            config = json.loads(text)
            facts = _facts(config, clip)
        except (ValueError, AttributeError, TypeError, RecursionError, OverflowError) as error:
            draft.problems.append(
                Problem(f"{path} is no DeepSpeed JSON: {error}", draft.where("deepspeed"), "correct it")
            )
            return
        draft.files.append(("deepspeed", path, config))
    elif published is not None:
        facts = {"offload": "none", "schedule": False, **published}
        facts["parameters"] = facts["offload"]
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
    if zero == 3 and facts["offload"] != facts["parameters"]:
        draft.set("stage.deepspeed.offload_param", facts["parameters"], "deepspeed")
    draft.set("stage.optim.max_grad_norm", facts["clip"], "deepspeed", "max_grad_norm",
              note="the file does not clip" if facts["clip"] == 0.0 else "")  # fmt: skip
    if bucket := facts.get("bucket"):
        draft.set("stage.deepspeed.reduce_bucket_size", bucket, "deepspeed")
        draft.set("stage.deepspeed.allgather_bucket_size", bucket, "deepspeed")
    if facts["schedule"] is True or facts["schedule"] == "WarmupLR":
        draft.notes.append(f"{name}.json brings a scheduler, so that upstream warmed up and stayed constant: "
                           "compat.offload_schedule (--quirks)")  # fmt: skip
        if draft.options.quirks:
            draft.set("stage.compat.offload_schedule", True, note=f"{name}.json brings a scheduler")
    elif facts["schedule"]:
        draft.notes.append(f"{name}.json brings the scheduler {facts['schedule']}, which upstream ran in place of the "
                           "script's; nothing here does the same")  # fmt: skip


def _facts(config: dict[str, Any], clip: float | None) -> dict[str, Any]:
    """What of a DeepSpeed JSON a stage says itself."""
    zero = config.get("zero_optimization", {})
    clipping = config.get("gradient_clipping", 0.0)
    old = "cpu" if zero.get("cpu_offload") is True else "none"
    return {
        "stage": int(zero.get("stage", 0)),
        "offload": _device(zero.get("offload_optimizer"), old),
        "parameters": _device(zero.get("offload_param"), "none"),
        "clip": clip if clipping == "auto" else float(clipping),
        "schedule": str((config["scheduler"] or {}).get("type", "of no type")) if "scheduler" in config else False,
    }


def _device(block: Any, otherwise: str) -> str:
    device = (block or {}).get("device", otherwise)
    return device if device in ("cpu", "nvme") else "none"
