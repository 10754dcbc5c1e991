"""A stage's values as the flags of LLaVA, Bunny or MiniCPM-V; what they cannot say is added to a list."""

from __future__ import annotations

import json
from typing import Any

from vlmrun.config import derived
from vlmrun.config.schema import RunConfig, TrainStage, services
from vlmrun.importers import options
from vlmrun.importers.launch import table

_SHAPES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup", "polynomial": "polynomial",
           "inverse_sqrt": "inverse_sqrt", "wsd": "warmup_stable_decay"}  # fmt: skip
_COOLDOWNS = {"cosine": "cosine", "linear": "linear", "one_minus_sqrt": "1-sqrt"}
# Numbers of stage.deepspeed that stand in the JSON by the same name.
ZERO = ("contiguous_gradients", "reduce_scatter", "round_robin_gradients", "reduce_bucket_size",
        "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
        "stage3_max_live_parameters", "stage3_max_reuse_distance", "zero_hpz_partition_size",
        "zero_quantized_weights", "zero_quantized_gradients")  # fmt: skip
WHOLE = "openbmb/MiniCPM-Llama3-V-2_5"


def folder(run: RunConfig, stage: str) -> str:
    """Where a stage's command writes; what is no stage of the run is a path itself."""
    return f"./checkpoints/{run.name}-{stage}" if stage in run.stage else stage


def deepspeed(stage: TrainStage) -> dict[str, Any]:
    """The DeepSpeed JSON of a stage: what differs from conf/ stands in it, the rest is left to the Trainer."""
    numbers = stage.deepspeed
    zero: dict[str, Any] = {"stage": stage.zero, "overlap_comm": numbers.overlap_comm}
    for name in ZERO:
        if getattr(numbers, name) != options.preset(f"stage.deepspeed.{name}"):
            zero[name] = getattr(numbers, name)
    parameters = stage.offload if numbers.offload_param is None else numbers.offload_param
    for block, device in (("offload_optimizer", stage.offload), ("offload_param", parameters)):
        if device != "none" and (block == "offload_optimizer" or stage.zero == 3):
            drive = {"nvme_path": numbers.nvme_path} if device == "nvme" else {}
            zero[block] = {"device": device, "pin_memory": numbers.pin_memory, **drive}
    scale = numbers.fp16.model_dump()
    changed = {key: value for key, value in scale.items() if value != options.preset(f"stage.deepspeed.fp16.{key}")}
    return {
        "fp16": {"enabled": "auto", **changed}, "bf16": {"enabled": "auto"}, "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": stage.optim.max_grad_norm,
    }  # fmt: skip


def engine(stage: TrainStage, file: str) -> dict[str, Any]:
    """The flags of a stage's engine."""
    if stage.engine != "fsdp":
        return {"deepspeed": file}
    return {
        "fsdp": f"{'full_shard' if stage.zero == 3 else 'shard_grad_op'} auto_wrap",
        "max_grad_norm": stage.optim.max_grad_norm,
    }


# Of adapters, what no flag says: neutral value of each.
_ADAPTERS: dict[str, Any] = {"rslora": False, "dora": False, "rank_pattern": {}, "alpha_pattern": {}}


def adapters(stage: TrainStage, name: str, unsaid: list[str]) -> None:
    """Adds what is asked of a stage's adapters and no flag says, and adapters of the tower, for which there is none."""
    if stage.tune.tower == "lora":
        unsaid.append(f"stage.{name}.tune.tower: lora")
    if stage.lora is not None and stage.tune.adapters:
        values = {key: getattr(stage.lora, key) for key in _ADAPTERS}
        unsaid += [f"stage.{name}.lora.{key}: {value}" for key, value in values.items() if value != _ADAPTERS[key]]


def schedule(stage: TrainStage, unsaid: list[str]) -> dict[str, Any]:
    """Length, warm-up and shape."""
    optim = stage.optim
    name, arguments = _SHAPES[optim.schedule], dict[str, Any]()
    if optim.schedule == "polynomial":
        arguments = {"lr_end": optim.min_lr or 0.0, "power": optim.power}
    elif optim.schedule == "cosine" and (optim.min_lr or optim.min_lr_ratio):
        name = "cosine_with_min_lr"
        arguments = {"min_lr": optim.min_lr} if optim.min_lr else {"min_lr_rate": optim.min_lr_ratio}
    elif optim.schedule == "wsd" and optim.cooldown_steps and optim.cooldown_shape in _COOLDOWNS:
        arguments = {"num_decay_steps": optim.cooldown_steps, "min_lr_ratio": optim.min_lr_ratio,
                     "decay_type": _COOLDOWNS[optim.cooldown_shape]}  # fmt: skip
    elif optim.schedule == "wsd" or optim.min_lr or optim.min_lr_ratio:
        unsaid.append(f"optim.schedule: {optim.schedule} down to {optim.min_lr or optim.min_lr_ratio}")
    if stage.max_steps and stage.epochs is not None:
        unsaid.append(f"epochs: {stage.epochs}, which end before max_steps where the data is small")
    warmup = (
        {"warmup_ratio": optim.warmup_ratio} if optim.warmup_ratio is not None else {"warmup_steps": optim.warmup_steps}
    )
    return {
        **({"max_steps": stage.max_steps} if stage.max_steps else {"num_train_epochs": stage.epochs}),
        **warmup,
        "lr_scheduler_type": name,
        **({"lr_scheduler_kwargs": json.dumps(arguments)} if arguments else {}),
    }


def common(run: RunConfig, name: str, stage: TrainStage) -> dict[str, Any]:
    """Flags of transformers' Trainer."""
    source = run.data[stage.data[0]]
    optim = stage.optim
    trackers = list(services(run.tracking))
    return {
        "data_path": source.annotations,
        **({"image_folder": source.images} if source.images else {}),
        "bf16": run.hardware.precision == "bf16",
        "fp16": run.hardware.precision == "fp16",
        "tf32": run.hardware.tf32,
        "output_dir": folder(run, name),
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
        "logging_steps": stage.log_steps,
        "model_max_length": run.model.max_length,
        "gradient_checkpointing": bool(stage.gradient_checkpointing),
        "dataloader_num_workers": stage.workers,
        "seed": stage.seed,
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
    elif stage.init_from is not None:
        flags["model_name_or_path"] = folder(run, stage.init_from) if parent is not None else stage.init_from
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
        if model.tower.arguments.get("feature", "patch") != "patch":
            flags["mm_vision_select_feature"] = model.tower.arguments["feature"]
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
    if stage.tune.tower == "full" and family == "bunny":
        flags["unfreeze_vision_tower"] = True
    elif stage.tune.tower == "full":
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
        if stage.lora.modules_to_save != ["embed_tokens"]:  # which it does without being asked
            unsaid.append(f"lora.modules_to_save {stage.lora.modules_to_save}")
        flags |= {"use_lora": True, "q_lora": stage.tune.llm == "qlora", "lora_r": stage.lora.r}
        flags |= {"lora_alpha": int(stage.lora.alpha), "lora_dropout": stage.lora.dropout, "lora_bias": stage.lora.bias}
        flags["lora_target_modules"] = stage.lora.targets
    if stage.eval is not None:
        every = stage.eval.steps
        how = {"evaluation_strategy": "epoch"} if every == "epoch" else {"evaluation_strategy": "steps"}
        flags |= how | ({} if every == "epoch" else {"eval_steps": every}) | {"do_eval": True}
        flags["eval_data_path"] = run.data[stage.eval.data[0]].annotations
    return flags
