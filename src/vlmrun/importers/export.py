"""The way back: a composed run as the launch script of LLaVA, Bunny or MiniCPM-V, for a comparison under the same values.

What upstream cannot say is listed in the script's head, never dropped.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from vlmrun import graph
from vlmrun.config import derived
from vlmrun.config.schema import AverageStage, MergeStage, RunConfig, TrainStage
from vlmrun.errors import ConfigError, suggest
from vlmrun.importers import options
from vlmrun.importers.launch import table

FAMILIES = ("llava", "bunny", "minicpm")
_ENTRIES = {"llava": "llava/train/train_mem.py", "bunny": "bunny/train/train.py", "minicpm": "finetune.py"}
_WHOLE = "openbmb/MiniCPM-Llama3-V-2_5"
_MERGE = {"llava": "scripts/merge_lora_weights.py", "bunny": "script/merge_lora_weights.py"}
# What a stage of ours has and no flag of theirs says: neutral value of each.
_NEUTRAL: dict[str, Any] = {
    "data_weights": None, "packing": None, "image_decode": "exact", "keep_best": None, "engine": "deepspeed",
    "loss": "micro_mean", "optim.min_lr_ratio": 0.0, "optim.tower_lr": None,
}  # fmt: skip


def script(run: RunConfig, family: str) -> str:
    """A bash script whose commands train what the run's stages train.

    Raises:
        ConfigError: for a family there is none for, or a run without a training stage.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no scripts for {family!r}", "--for", suggest(family, FAMILIES, noun="families"))
    unsaid: list[str] = []
    commands: list[str] = []
    planned, problems = graph.plan(run)
    graph.require(problems)
    for item in planned:
        name, stage = item.name, item.stage
        if isinstance(stage, TrainStage):
            commands.append(_training(run, name, stage, family, unsaid))
        elif isinstance(stage, MergeStage):
            commands.append(_merging(run, name, stage, family))
        elif isinstance(stage, AverageStage) and stage.weights and stage.method.name == "linear":
            commands.append(_averaging(run, name, stage))
        else:
            unsaid.append(f"stage.{name}: {stage.kind}")
    if not any(isinstance(stage, TrainStage) for stage in run.stage.values()):
        raise ConfigError(f"{run.name} trains nothing", "recipe", "choose one with a training stage: vlmrun recipes")
    head = ["#!/bin/bash", f"# {run.name} for {family}.   vlmrun export-script {run.name} --for {family}"]
    head += [f"# not said by these flags: {text}" for text in unsaid]
    return "\n".join([*head, "set -e", "", *commands])


def _folder(run: RunConfig, stage: str) -> str:
    return f"./checkpoints/{run.name}-{stage}"


def _training(run: RunConfig, name: str, stage: TrainStage, family: str, unsaid: list[str]) -> str:
    for key, neutral in _NEUTRAL.items():
        value: Any = stage
        for part in key.split("."):
            value = getattr(value, part)
        if value != neutral and not (key == "optim.tower_lr" and value == stage.optim.connector_lr):
            unsaid.append(f"stage.{name}.{key}: {value}")
    flags = _common(run, name, stage) | (_minicpm if family == "minicpm" else _llava)(run, stage, family, unsaid)
    ds = f"ds_{name}.json"
    ranks = run.hardware.ranks_per_node
    launcher = (
        f"torchrun --nnodes {run.hardware.nodes} --nproc_per_node {ranks}"
        if run.hardware.nodes > 1
        else f"deepspeed --num_gpus {ranks}"
    )
    lines = [
        f"{launcher} {_ENTRIES[family]}",
        f"--deepspeed {ds}",
        *(_flag(key, value) for key, value in flags.items()),
    ]
    return f"cat > {ds} <<'EOF'\n{json.dumps(_deepspeed(stage))}\nEOF\n" + " \\\n    ".join(lines) + "\n"


def _flag(name: str, value: Any) -> str:
    text = str(value) if not isinstance(value, float) else repr(value)
    return f"--{name} {shlex.quote(text)}"


def _deepspeed(stage: TrainStage) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage.zero, "overlap_comm": True, "contiguous_gradients": True}
    if stage.offload != "none":
        zero["offload_optimizer"] = {"device": stage.offload, "pin_memory": True}
    return {
        "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": stage.optim.max_grad_norm,
    }  # fmt: skip


def _common(run: RunConfig, name: str, stage: TrainStage) -> dict[str, Any]:
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
        "output_dir": _folder(run, name),
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
    names = table("flags")["templates"][family]
    found = next((theirs for theirs, ours in names.items() if ours == name), None)
    if found is None:
        unsaid.append(f"template {name}: {family} has none like it")
    return found or next(iter(names))


def _llava(run: RunConfig, stage: TrainStage, family: str, unsaid: list[str]) -> dict[str, Any]:
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
        flags["pretrain_mm_mlp_adapter"] = f"{_folder(run, stage.init_from or '')}/mm_projector.bin"
    elif parent is not None:
        flags["model_name_or_path"] = _folder(run, stage.init_from or "")
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


def _minicpm(run: RunConfig, stage: TrainStage, family: str, unsaid: list[str]) -> dict[str, Any]:
    slices = derived.slices(run.model)
    if run.model.template != "minicpm_v25" or slices is None:
        unsaid.append(f"model {run.model.template}: MiniCPM-V 2.5 alone is said")
    flags: dict[str, Any] = {
        "model_name_or_path": _WHOLE, "llm_type": "llama3", "remove_unused_columns": False,
        "label_names": "labels", "tune_vision": stage.tune.tower == "full", "tune_llm": stage.tune.llm == "full",
        "max_slice_nums": slices.max_slices if slices else 9,
    }  # fmt: skip
    if stage.lora is not None and stage.tune.adapters:
        flags |= {"use_lora": True, "q_lora": stage.tune.llm == "qlora", "lora_r": stage.lora.r}
        flags |= {"lora_alpha": int(stage.lora.alpha), "lora_dropout": stage.lora.dropout, "lora_bias": stage.lora.bias}
        flags["lora_target_modules"] = stage.lora.targets
    if stage.eval is not None:
        flags |= {"evaluation_strategy": "steps", "eval_steps": stage.eval.steps, "do_eval": True}
        flags["eval_data_path"] = run.data[stage.eval.data[0]].annotations
    return flags


def _merging(run: RunConfig, name: str, stage: MergeStage, family: str) -> str:
    if family == "minicpm":
        body = (
            "from peft import PeftModel\nfrom transformers import AutoModel\n"
            f"base = AutoModel.from_pretrained('{_WHOLE}', trust_remote_code=True)\n"
            f"model = PeftModel.from_pretrained(base, '{_folder(run, stage.init_from)}').merge_and_unload()\n"
            f"model.save_pretrained('{_folder(run, name)}')\n"
        )
        return f"python - <<'EOF'\n{body}EOF\n"
    lines = [f"python {_MERGE[family]}", f"--model-path {_folder(run, stage.init_from)}",
             f"--model-base {shlex.quote(str(run.model.llm.arguments['path']))}", f"--save-model-path {_folder(run, name)}"]  # fmt: skip
    return " \\\n    ".join(lines) + "\n"


def _averaging(run: RunConfig, name: str, stage: AverageStage) -> str:
    """The averaging of the published tutorials, for models of any number of shards."""
    assert stage.weights is not None
    loads = "\n".join(f"    m{n} = load_file('{_folder(run, model)}/' + file)" for n, model in enumerate(stage.models))
    total = " + ".join(f"m{n}[k] * {weight}" for n, weight in enumerate(stage.weights))
    body = (
        "import os\nfrom safetensors.torch import load_file, save_file\n"
        f"for file in sorted(f for f in os.listdir('{_folder(run, stage.models[0])}') if f.endswith('.safetensors')):\n"
        f"{loads}\n    save_file({{k: {total} for k in m0}}, '{_folder(run, name)}/' + file, {{'format': 'pt'}})\n"
    )
    return f"cp -r {_folder(run, stage.models[-1])} {_folder(run, name)}\npython - <<'EOF'\n{body}EOF\n"
