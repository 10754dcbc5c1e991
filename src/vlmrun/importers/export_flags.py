"""A stage's values as the flags of LLaVA, Bunny or MiniCPM-V; what they cannot say is added to a list."""

from __future__ import annotations

import shlex
from typing import Any

from vlmrun.config import derived
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.importers import options
from vlmrun.importers.launch import table

WHOLE = "openbmb/MiniCPM-Llama3-V-2_5"


def folder(run: RunConfig, stage: str) -> str:
    """Where a stage's command writes."""
    return f"./checkpoints/{run.name}-{stage}"


def flag(name: str, value: Any) -> str:
    """One flag, quoted."""
    text = str(value) if not isinstance(value, float) else repr(value)
    return f"--{name} {shlex.quote(text)}"


def deepspeed(stage: TrainStage) -> dict[str, Any]:
    """The DeepSpeed JSON of a stage."""
    zero: dict[str, Any] = {"stage": stage.zero, "overlap_comm": True, "contiguous_gradients": True}
    if stage.offload != "none":
        zero["offload_optimizer"] = {"device": stage.offload, "pin_memory": True}
    return {
        "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": stage.optim.max_grad_norm,
    }  # fmt: skip


def common(run: RunConfig, name: str, stage: TrainStage) -> dict[str, Any]:
    """Flags of transformers' Trainer."""
    source = run.data[stage.data[0]]
    optim = stage.optim
    schedule = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
    warmup = (
        {"warmup_ratio": optim.warmup_ratio} if optim.warmup_ratio is not None else {"warmup_steps": optim.warmup_steps}
    )
    trackers = [tracker.removesuffix("_online") for tracker in run.tracking]
    return {
        "data_path": source.annotations,
        **({"image_folder": source.images} if source.images else {}),
        "bf16": run.hardware.precision == "bf16",
        "fp16": run.hardware.precision == "fp16",
        "tf32": run.hardware.tf32,
        "output_dir": folder(run, name),
        **({"max_steps": stage.max_steps} if stage.max_steps else {"num_train_epochs": stage.epochs}),
        "per_device_train_batch_size": stage.micro_batch,
        "gradient_accumulation_steps": derived.accumulation(stage, run.hardware),
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        "save_total_limit": stage.save_total_limit,
        "learning_rate": optim.lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        **warmup,
        "lr_scheduler_type": schedule,
        "logging_steps": stage.log_steps,
        "model_max_length": run.model.max_length,
        "gradient_checkpointing": stage.gradient_checkpointing,
        "dataloader_num_workers": stage.workers,
        "report_to": ",".join(dict.fromkeys(trackers)) or "none",
    }


def _reverse(family: str, name: str, unsaid: list[str]) -> str:
    names: dict[str, str] = table("flags")["templates"][family]
    found = next((theirs for theirs, ours in names.items() if ours == name), None)
    if found is None:
        unsaid.append(f"template {name}: {family} has none like it")
    return found or next(iter(names))


def llava(run: RunConfig, stage: TrainStage, family: str, unsaid: list[str]) -> dict[str, Any]:
    """Model, data and tuning of the LLaVA family."""
    model = run.model
    parent = run.stage.get(stage.init_from or "")
    flags: dict[str, Any] = {"model_name_or_path": model.llm.arguments["path"]}
    if family == "bunny":
        kinds = table("flags")["model_types"]
        llm = str(model.llm.arguments["path"])
        found = next((kind for kind, option in kinds.items() if _same(option, llm)), None)
        if found is None:
            unsaid.append(f"model.llm {llm}: no --model_type of Bunny")
        flags["model_type"] = found or "phi-2"
    if isinstance(parent, TrainStage) and parent.tune.llm in ("freeze", "new_tokens"):
        flags["pretrain_mm_mlp_adapter"] = f"{folder(run, stage.init_from or '')}/mm_projector.bin"
    elif parent is not None:
        flags["model_name_or_path"] = folder(run, stage.init_from or "")
    elif model.connector.arguments.get("weights"):
        flags["pretrain_mm_mlp_adapter"] = model.connector.arguments["weights"]
    flags |= {
        "version": _reverse(family, derived.template(stage, model), unsaid),
        "vision_tower": model.tower.arguments["path"],
    }
    flags |= _connector(run, family, unsaid) | _tuning(stage, family, unsaid)
    if stage.image_aspect not in ("square", "pad"):
        unsaid.append(f"image_aspect: {stage.image_aspect}")
    flags["image_aspect_ratio"] = stage.image_aspect
    flags["group_by_modality_length"] = stage.group_by_modality_length
    return flags


def _same(option: str, path: str) -> bool:
    return options.option("llm", path) == option


def _connector(run: RunConfig, family: str, unsaid: list[str]) -> dict[str, Any]:
    model = run.model
    depth = model.connector.arguments.get("depth", 2)
    if not model.connector.target.endswith(".MLP"):
        unsaid.append(f"model.connector {model.connector.target}")
    flags: dict[str, Any] = {"mm_projector_type": "linear" if depth == 1 else f"mlp{depth}x_gelu"}
    layers = model.tower.arguments.get("layers") or [-2]
    if family == "llava":
        flags |= {"mm_vision_select_layer": layers[0], "mm_use_im_start_end": model.image_markers is not None}
        flags["mm_use_im_patch_token"] = False
    elif model.tower.arguments.get("scales"):
        flags["use_s2"] = True
    if model.new_tokens or len(layers) > 1:
        unsaid.append(f"model.new_tokens {model.new_tokens}, model.tower.layers {layers}")
    return flags


def _tuning(stage: TrainStage, family: str, unsaid: list[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if stage.tune.llm in ("freeze", "new_tokens"):
        flags["tune_mm_mlp_adapter"] = True
    if stage.tune.connector == "freeze":
        flags["freeze_mm_mlp_adapter"] = True
    if stage.tune.tower == "full":
        if family == "bunny":
            flags["unfreeze_vision_tower"] = True
        else:
            unsaid.append("tune.tower: full")
    if stage.lora is not None and stage.tune.adapters:
        flags |= {"lora_enable": True, "lora_r": stage.lora.r, "lora_alpha": int(stage.lora.alpha)}
        flags |= {"lora_dropout": stage.lora.dropout, "lora_bias": stage.lora.bias}
        if stage.lora.targets != "all-linear" or stage.lora.modules_to_save:
            unsaid.append(f"lora.targets {stage.lora.targets}, modules_to_save {stage.lora.modules_to_save}")
    if stage.quant is not None and stage.tune.llm == "qlora":
        flags |= {"bits": stage.quant.bits, "quant_type": stage.quant.type, "double_quant": stage.quant.double}
    if stage.optim.connector_lr is not None:
        flags["mm_projector_lr"] = stage.optim.connector_lr
    return flags


def minicpm(run: RunConfig, stage: TrainStage, family: str, unsaid: list[str]) -> dict[str, Any]:
    """Model and tuning of MiniCPM-V."""
    slices = derived.slices(run.model)
    if run.model.template != "minicpm_v25" or slices is None:
        unsaid.append(f"model {run.model.template}: MiniCPM-V 2.5 alone is said")
    flags: dict[str, Any] = {
        "model_name_or_path": WHOLE, "llm_type": "llama3", "remove_unused_columns": False,
        "label_names": "labels", "tune_vision": stage.tune.tower == "full", "tune_llm": stage.tune.llm == "full",
        "max_slice_nums": slices.max_slices if slices else 9,
    }  # fmt: skip
    if stage.lora is not None and stage.tune.adapters:
        flags |= {"use_lora": True, "q_lora": stage.tune.llm == "qlora", "lora_r": stage.lora.r}
        flags |= {"lora_alpha": int(stage.lora.alpha), "lora_dropout": stage.lora.dropout, "lora_bias": stage.lora.bias}
        flags["lora_target_modules"] = stage.lora.targets
    if stage.eval is not None:
        every = stage.eval.steps
        how = {"evaluation_strategy": "epoch"} if every == "epoch" else {"evaluation_strategy": "steps"}
        flags |= how | ({} if every == "epoch" else {"eval_steps": every}) | {"do_eval": True}
        flags["eval_data_path"] = run.data[stage.eval.data[0]].annotations
    return flags
