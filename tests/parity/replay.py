"""One recorded training run, carried out by vlmrun's own trainer: its job, its first weights, its own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.integration.jobs import HARDWARE, NO_COMPAT, STAGE
from tests.parity.golden import CASES, asset
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage

RUNS = "g6_optim/train_runs"
# By the model_type of a tower's folder.
TOWERS = {
    "clip": "vlmrun.model.towers.clip.Clip",
    "clip_vision_model": "vlmrun.model.towers.clip.Clip",
    "siglip": "vlmrun.model.towers.siglip.Siglip",
    "siglip_vision_model": "vlmrun.model.towers.siglip.Siglip",
}
DEPTHS = {"linear": 1, "mlp2x_gelu": 2}
TEMPLATES = {"plain": "plain", "v1": "vicuna_v1", "bunny": "bunny"}


def flags(recorded: dict[str, Any]) -> dict[str, str]:
    """The command line of a run."""
    words = recorded["args"]
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def job_of(folder: Path, run: Path, **changes: Any) -> StageJob:
    """The recorded run as a job of ours. Keys of `changes` that the hardware has go there, all others to the stage."""
    recorded = json.loads((run / "result.json").read_text("utf-8"))
    given = flags(recorded)
    on = {name for name, value in given.items() if value == "True"}
    is_bunny = "model_type" in given
    micro, accumulation = int(given["per_device_train_batch_size"]), int(given["gradient_accumulation_steps"])
    rate = float(given["learning_rate"])
    own = float(given["mm_projector_lr"]) if "mm_projector_lr" in given else None
    whole = not {"tune_mm_mlp_adapter", "lora_enable"} & on
    tower = "full" if "unfreeze_vision_tower" in on else "freeze"
    lora = None
    if "lora_enable" in on:
        shape = {
            "r": int(given["lora_r"]),
            "alpha": float(given["lora_alpha"]),
            "dropout": float(given["lora_dropout"]),
        }
        lora = {**shape, "targets": "all-linear", "bias": "none", "modules_to_save": []}
    optim = {
        "lr": rate,
        "connector_lr": own,
        "tower_lr": own if tower == "full" else None,  # Bunny's covers both
        "weight_decay": float(given["weight_decay"]),
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "schedule": given["lr_scheduler_type"],
        "min_lr_ratio": 0.0,
        "weight_decay_end": None,
        "weight_decay_schedule": "constant",
        "power": 1.0,
        "min_lr": None,
        "decay_steps": None,
        "cooldown_steps": None,
        "cooldown_ratio": None,
        "cooldown_shape": "cosine",
        "warmup_from": 0.0,
        "warmup_ratio": float(given["warmup_ratio"]),
        "warmup_steps": None,
        "max_grad_norm": 1.0,
    }
    compat = NO_COMPAT | {
        "transformers_order": "4.41" if is_bunny else "4.37",
        "fp16_tower": any("tower in float16" in place for place in recorded["initial_weights_from"].values()),
        "records": True,
        "labels": "bunny" if is_bunny else "llava",
        "decay_unlisted_norms": True,
    }
    stage = STAGE | {
        "template": TEMPLATES[given["version"]],
        "image_aspect": given["image_aspect_ratio"],
        "group_by_modality_length": "group_by_modality_length" in on,
        "tune": {"llm": "full" if whole else "lora" if lora else "freeze", "tower": tower, "connector": "full"},
        "lora": lora,
        "optim": optim,
        "compat": compat,
        "loss": "micro_mean",
        "epochs": float(given["num_train_epochs"]),
        "global_batch": micro * accumulation,
        "micro_batch": micro,
        "engine": "plain",
        "gradient_checkpointing": "gradient_checkpointing" in on,
        "seed": int(given["seed"]),
    }
    hardware = HARDWARE | {"attention": "eager"} | {k: changes.pop(k) for k in list(changes) if k in HARDWARE}
    base = {part: asset(f"{RUNS}/base/{given[part]}") for part in ("model_name_or_path", "vision_tower")}
    kind = json.loads((base["vision_tower"] / "config.json").read_text("utf-8"))["model_type"]
    value = {
        "name": run.name,
        "key": "0" * 16,
        "run": "replay",
        "folder": str(folder / run.name),
        "model": {
            "llm": {
                "_target_": "vlmrun.model.llm.load",
                "path": str(base["model_name_or_path"]),
                "tokens": {"pad": "<|endoftext|>" if is_bunny else "<unk>"},
            },
            "tower": {"_target_": TOWERS[kind], "path": str(base["vision_tower"]), "layers": [-2]},
            "connector": {
                "_target_": "vlmrun.model.connectors.mlp.MLP",
                "depth": DEPTHS[given["mm_projector_type"]],
            },
            "template": stage["template"],
            "max_length": int(given["model_max_length"]),
            "image_markers": None,
            "new_tokens": [],
            "tiles": None,
        },
        "data": {
            "shapes": {
                "format": "llava",
                "split": None,
                "fields": None,
                "annotations": str(asset(f"{RUNS}/{given['data_path']}")),
                "images": str(asset(f"{RUNS}/{given['image_folder']}")),
                "on_error": "fail",
                "prepare": None,
                "about": None,
            }
        },
        "parents": {},
        "prepared": [],
        "tracking": [],
        "stage": stage | changes,
        "hardware": hardware,
    }
    Path(value["folder"]).mkdir(parents=True, exist_ok=True)
    return StageJob.model_validate(value)


def our_name(name: str) -> str:
    """Upstream's name of a parameter -> the VLM's."""
    adapted = name.startswith("base_model.model.")
    plain = name.removeprefix("base_model.model.")
    if "mm_projector." in plain:
        return "connector.layers." + plain.partition("mm_projector.")[2]
    if "vision_tower.vision_tower." in plain:
        return "tower.model." + plain.partition("vision_tower.vision_tower.")[2].removeprefix("vision_model.")
    return f"llm.base_model.model.{plain}" if adapted else f"llm.{plain}"


def replay(text: str, folder: str) -> dict[str, Any] | None:
    """Trains in this process from the recorded first weights; rank 0 gets what to compare."""
    from vlmrun.train import dist, model, setup

    job = StageJob.model_validate(json.loads(text))
    run = Path(folder)
    assert isinstance(job.stage, TrainStage)
    with dist.session(job.hardware):
        config = model.deepspeed_config(job, job.stage)
        loaded = model.load(job, job.stage, config)
        _begin_as_recorded(loaded.vlm, run)
        trained = setup._Run(job, loaded, config, None)
        trained.resume()
        trained.train()
        wanted = load_file(run / "final_trainable.safetensors")
        ours = dict(loaded.vlm.named_parameters())
        off = {name: float((ours[our_name(name)].detach() - value).abs().max()) for name, value in wanted.items()}
        result = trained.result()
        groups = {name: (group.lr, group.weight_decay) for group in trained.engine.groups for name in group.names}
        return {
            "losses": [row.loss for row in result.rows],
            "norms": [row.grad_norm for row in result.rows],
            "lrs": [row.lr for row in result.rows],
            "order": [i for step in range(trained.schedule.steps) for i in trained.schedule.indices(step)],
            "off": off,
            "groups": groups,
        }


def _begin_as_recorded(vlm: torch.nn.Module, run: Path) -> None:
    """The recorded first values of connector and adapters; Bunny's Phi has no bias on its head."""
    ours = dict(vlm.named_parameters())
    with torch.no_grad():
        for name, value in load_file(run / "initial_rest.safetensors").items():
            ours[our_name(name)].copy_(value)
    head = ours.get("llm.lm_head.bias")
    if head is not None:
        assert not head.any()
        head.requires_grad_(False)


def recorded_runs() -> list[Path]:
    """Every folder of a recorded run."""
    return sorted(path.parent for path in (CASES / RUNS).glob("*/result.json"))


def kind_of(run: Path) -> str:
    """What a recorded run trains, by its command line."""
    given = flags(json.loads((run / "result.json").read_text("utf-8")))
    on = {name for name, value in given.items() if value == "True"}
    return "lora" if "lora_enable" in on else "pretrain" if "tune_mm_mlp_adapter" in on else "finetune"
