"""The way back: a composed run as another project's launch script, for a comparison under the same values.

What upstream cannot say is listed in the script's head, never dropped.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vlmrun import graph
from vlmrun.config.schema import AverageStage, MergeStage, RunConfig, TrainStage
from vlmrun.errors import ConfigError, suggest
from vlmrun.importers.export_flags import (
    WHOLE,
    adapters,
    common,
    deepspeed,
    engine,
    folder,
    llava,
    minicpm,
    schedule,
)
from vlmrun.importers.shell_words import comment, flag, word

FAMILIES = ("llava", "bunny", "minicpm")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENTRIES = {"llava": "llava/train/train_mem.py", "bunny": "bunny/train/train.py", "minicpm": "finetune.py"}
_MERGE = {"llava": "scripts/merge_lora_weights.py", "bunny": "script/merge_lora_weights.py"}
# What a stage of ours has and no flag of theirs says: neutral value of each.
_NEUTRAL: dict[str, Any] = {
    "data_weights": None, "packing": None, "image_decode": "exact", "keep_best": None, "order": None,
    "loss": "micro_mean", "optim.tower_lr": None, "optim.decay_steps": None, "optim.warmup_from": 0.0,
    "optim.weight_decay_end": None, "offload_checkpoints": False, "compat.images": "upstream",
    "tune.llm_last": None, "tune.tower_last": None, "ema": None, "optim.optimizer": "adamw",
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
    graph.require([problem for problem in problems if not problem.where.endswith(".init_from")])  # upstream's own path
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
    head = ["#!/bin/bash", comment(f"{run.name} for {family}.   vlmrun export-script {run.name} --for {family}")]
    exports = {key: value for key, value in sorted(run.hardware.env.items()) if _VARIABLE.fullmatch(key)}
    unsaid += [f"hardware.env.{key}: no name of a variable" for key in run.hardware.env if key not in exports]
    head += [comment(f"not said by these flags: {text}") for text in unsaid]
    head += [f"export {key}={word(value)}" for key, value in exports.items()]
    return "\n".join([*head, "set -e", "", *commands])


def _training(run: RunConfig, name: str, stage: TrainStage, family: str, unsaid: list[str]) -> str:
    for key, neutral in _NEUTRAL.items():
        value: Any = stage
        for part in key.split("."):
            value = getattr(value, part)
        if value != neutral and not (key == "optim.tower_lr" and value == stage.optim.connector_lr):
            unsaid.append(f"stage.{name}.{key}: {value}")
    adapters(stage, name, unsaid)
    if stage.eval is not None and stage.eval.patience is not None:
        unsaid.append(f"stage.{name}.eval.patience: {stage.eval.patience}")
    if len(stage.data) > 1:
        unsaid.append(f"stage.{name}.data: {', '.join(stage.data[1:])}, besides the first")
    if stage.eval is not None and family != "minicpm":
        unsaid.append(f"stage.{name}.eval: nothing is evaluated during training there")
    ds = f"ds_{name}.json"
    flags = engine(stage, ds) | common(run, name, stage) | schedule(stage, unsaid)
    flags |= (minicpm if family == "minicpm" else llava)(run, stage, family, unsaid)
    ranks = run.hardware.ranks_per_node
    launcher = (
        f"torchrun --nnodes {run.hardware.nodes} --nproc_per_node {ranks}"
        if run.hardware.nodes > 1
        else f"deepspeed --num_gpus {ranks}"
    )
    entry = _ENTRIES[family]
    if family == "llava" and run.hardware.attention == "xformers":
        entry = entry.replace("_mem", "_xformers")
    command = " \\\n    ".join([f"{launcher} {entry}", *(flag(key, value) for key, value in flags.items())]) + "\n"
    written = f"cat > {word(ds)} <<'EOF'\n{json.dumps(deepspeed(stage))}\nEOF\n" if "deepspeed" in flags else ""
    return written + command


def _merging(run: RunConfig, name: str, stage: MergeStage, family: str) -> str:
    if family == "minicpm":
        body = (
            "from peft import PeftModel\nfrom transformers import AutoModel\n"
            f"base = AutoModel.from_pretrained({WHOLE!r}, trust_remote_code=True)\n"
            f"model = PeftModel.from_pretrained(base, {folder(run, stage.init_from)!r}).merge_and_unload()\n"
            f"model.save_pretrained({folder(run, name)!r})\n"
        )
        return f"python - <<'EOF'\n{body}EOF\n"
    trained = run.stage.get(stage.init_from)
    start = trained.init_from if isinstance(trained, TrainStage) else None
    whole = start if start not in run.stage else None
    flags = {
        "model-path": folder(run, stage.init_from),
        "model-base": whole or run.model.llm.arguments["path"],
        "save-model-path": folder(run, name),
    }
    return " \\\n    ".join([f"python {_MERGE[family]}", *(flag(key, value) for key, value in flags.items())]) + "\n"


def _averaging(run: RunConfig, name: str, stage: AverageStage) -> str:
    """The averaging of the published tutorials, for models of any number of shards."""
    assert stage.weights is not None
    places = [folder(run, model) for model in stage.models]
    to = folder(run, name)
    loads = "\n".join(f"    m{n} = load_file({place + '/'!r} + file)" for n, place in enumerate(places))
    total = " + ".join(f"m{n}[k] * {weight}" for n, weight in enumerate(stage.weights))
    body = (
        "import os\nfrom safetensors.torch import load_file, save_file\n"
        f"for file in sorted(f for f in os.listdir({places[0]!r}) if f.endswith('.safetensors')):\n"
        f"{loads}\n    save_file({{k: {total} for k in m0}}, {to + '/'!r} + file, {{'format': 'pt'}})\n"
    )
    return f"cp -r {word(places[-1])} {word(to)}\npython - <<'EOF'\n{body}EOF\n"
