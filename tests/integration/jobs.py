"""Small but complete train jobs: pico parts, a few records on disk, a StageJob to execute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.integration import ranks as forked
from tests.pico import pico_model_config
from vlmrun import artifact
from vlmrun.config.compose import conf_dir
from vlmrun.config.job import StageJob
from vlmrun.config.schema import Compat

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}

NO_COMPAT: dict[str, Any] = {
    name: None if name in ("labels", "transformers_order", "llava_prompt", "images") else False
    for name in Compat.model_fields
}

STAGE: dict[str, Any] = {
    "kind": "train",
    "init_from": None,
    "data": ["shapes"],
    "data_weights": None,
    "max_samples": None,
    "until_loss": None,
    "record_losses": False,
    "group_by_modality_length": False,
    "order": None,
    "packing": None,
    "template": None,
    "image_aspect": "square",
    "image_background": "#ffffff",
    "image_decode": "exact",
    "image_cache": None,
    "tower_cache": None,
    "tune": {"llm": "full", "tower": "freeze", "connector": "full"},
    "lora": None,
    "tower_lora": None,
    "quant": None,
    "compat": NO_COMPAT,
    "optim": {
        "optimizer": "adamw",
        "lr": 3e-3,
        "connector_lr": 1e-3,
        "tower_lr": None,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "schedule": "cosine",
        "min_lr_ratio": 0.0,
        "weight_decay_end": None,
        "weight_decay_schedule": "constant",
        "power": 1.0,
        "min_lr": None,
        "decay_steps": None,
        "decay_ratio": None,
        "cooldown_steps": None,
        "cooldown_ratio": None,
        "cooldown_shape": "cosine",
        "warmup_from": 0.0,
        "warmup_ratio": 0.1,
        "warmup_steps": None,
        "max_grad_norm": 1.0,
    },
    "ema": None,
    "loss": "token_mean",
    "loss_head": "chunked",
    "loss_chunk": 5,
    "epochs": 2.0,
    "max_steps": None,
    "global_batch": 4,
    "micro_batch": 2,
    "zero": 2,
    "engine": "deepspeed",
    "offload": "none",
    "deepspeed": yaml.safe_load((conf_dir() / "stage" / "_train.yaml").read_text("utf-8"))["deepspeed"],
    "gradient_checkpointing": False,
    "offload_checkpoints": False,
    "save_steps": 100,
    "save_total_limit": 2,
    "save_async": False,
    "eval": None,
    "keep_best": None,
    "log_steps": 1,
    "workers": 0,
    "prefetch": 2,
    "seed": 7,
}

HARDWARE: dict[str, Any] = {
    "gpu": "cpu",
    "nodes": 1,
    "ranks_per_node": 1,
    "precision": "fp32",
    "attention": "sdpa",
    "tensor_parallel": 1,
    "sequence_parallel": 1,
    "tf32": False,
    "env": {},
    "launcher": "inline",
    "hostfile": None,
    "threads": 1,
    "timeout_seconds": 30,
    "hang_seconds": None,
    "max_restarts": 0,
}


def write_records(folder: Path, n: int = 24, *, text_only: str = "some") -> Path:
    """Writes n LLaVA records with answers of unequal length. `text_only`: none, some, or all of the records."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(n):
        name, colour = list(COLOURS.items())[index % len(COLOURS)]
        bare = text_only == "all" or (text_only == "some" and index % 6 == 5)
        answer = " ".join([name] * (1 + index % 5))
        question = "Which colour?" if bare else "<image>\nWhich colour?"
        record: dict[str, Any] = {
            "id": f"r{index}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        if not bare:
            record["image"] = f"{index}.png"
            Image.new("RGB", (16, 16), colour).save(folder / "images" / f"{index}.png")
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records), "utf-8")
    return folder


def make_job(folder: Path, name: str = "instruct", **changes: Any) -> StageJob:
    """A job in `folder/name`; parts and records are made in `folder` once.

    Keys of `changes` that the stage, its optim or the hardware have go there; `model`, `parents`, `tracking` and
    `on_error` change the job.
    """
    if not (folder / "data.json").is_file():
        write_records(folder)
    model = changes.pop("model", None) or pico_model_config(folder / "parts")
    data = {
        "format": "llava",
        "split": None,
        "fields": None,
        "annotations": str(folder / "data.json"),
        "images": str(folder / "images"),
        "on_error": changes.pop("on_error", "fail"),
        "prepare": None,
        "about": None,
    }
    job: dict[str, Any] = {
        "name": name,
        "key": "0" * 16,
        "run": "test",
        "folder": str(folder / name),
        "model": model.model_dump(by_alias=True),
        "data": {"shapes": data},
        "parents": changes.pop("parents", {}),
        "prepared": [],
        "tracking": changes.pop("tracking", []),
    }
    optim = STAGE["optim"] | {key: changes.pop(key) for key in list(changes) if key in STAGE["optim"]}
    hardware = HARDWARE | {key: changes.pop(key) for key in list(changes) if key in HARDWARE}
    unknown = set(changes) - set(STAGE)
    assert not unknown, f"no such settings: {unknown}"
    job |= {"stage": STAGE | changes | {"optim": optim}, "hardware": hardware}
    Path(job["folder"]).mkdir(parents=True, exist_ok=True)
    return StageJob.model_validate(job)


def rows(job: StageJob) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    lines = (job.path / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if "seconds" not in key} for line in lines]


def execute(text: str) -> dict[str, Any] | None:
    """Runs a job given as JSON in this process, as a worker does; returns the summary on rank 0."""
    import torch.distributed

    from vlmrun import logs
    from vlmrun.stages import train

    job = StageJob.model_validate(json.loads(text))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    logs.setup(rank=rank, folder=job.path / "logs")
    result = train.execute(job)
    return None if result is None else result.summary


def said(job: StageJob) -> str:
    """What rank 0 wrote to its log."""
    return (job.path / "logs" / "rank-0.log").read_text("utf-8")


def weights(job: StageJob) -> dict[str, str]:
    """Digest of every file of the trained model."""
    return {name: file.sha256 for name, file in artifact.describe_files(job.path, ("weights",)).items()}


def run(folder: Path, name: str, n: int = 1, **changes: Any) -> StageJob:
    """Makes a job of six steps and carries it out on `n` fresh ranks."""
    job = make_job(folder, name, ranks_per_node=n, **({"max_steps": 6} | changes))
    forked.run(execute, n, job.to_json(), group=n > 1)
    return job


def losses(job: StageJob) -> list[float | None]:
    """The loss of every step."""
    return [row["loss"] for row in rows(job)]


def compare(reference: StageJob, other: StageJob, *, loss_atol: float = 1e-5, norm_rtol: float = 1e-4) -> None:
    """Both trained the same: losses, gradient norms, rates, counts. The tolerances are of fp32 over ten updates."""
    truth, found = rows(reference), rows(other)
    assert len(truth) == len(found) > 0
    for expected, actual in zip(truth, found, strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], abs=loss_atol), expected["step"]
        assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=norm_rtol), expected["step"]
        for key in ("step", "epoch", "lr", "supervised_tokens", "samples"):
            assert actual[key] == expected[key]


def tensors(job: StageJob) -> dict[str, Any]:
    """Every tensor of the trained model, by part and name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(job.path.glob("weights/**/*.safetensors")):
        found |= {f"{file.parent.name}.{name}": tensor for name, tensor in load_file(file).items()}
    return found
