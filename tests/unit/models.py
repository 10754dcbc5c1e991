"""Saved pico models, as stages leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pico import IMAGE_SIZE, N_PATCHES, pico_loaded
from vlmrun import artifact
from vlmrun.config.schema import AverageStage, Lora, MergeStage, Tune
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model import tune
from vlmrun.model.parts import Loaded
from vlmrun.weights import native

TEMPLATE = {"name": "micro", "system": ""}


def save(folder: Path, loaded: Loaded, *changed: str, adapter: bool = False) -> Path:
    """Saves into `folder/weights` as the trainer does, and completes the artifact."""
    state = {n: p for n, p in loaded.vlm.llm.named_parameters() if "lora_" in n}
    native.save(
        folder / "weights",
        loaded,
        template=TEMPLATE,
        image_aspect="square",
        tensors={part: iter(list(loaded.vlm.get_submodule(part).named_parameters())) for part in changed},
        adapter=(tune.adapter_config(loaded.vlm.llm), state) if adapter else None,
    )
    return finish(folder)


def finish(folder: Path) -> Path:
    """Declares a folder with weights an artifact, digests and all."""
    made = artifact.Artifact(
        name=folder.name,
        kind="train",
        key="0" * 10,
        run="test",
        created="2025-01-02T03:04:05+00:00",
        parents=[],
        summary={},
        environment={},
        files=artifact.describe_files(folder, ("weights",)),
    )
    artifact.write_text(folder / artifact.NAME, made.model_dump_json())
    return folder


def averaging(n: int, weights: list[float] | None = None, **changes: object) -> AverageStage:
    """A stage that averages n models, linearly unless told otherwise; `method` is a dict of its values."""
    values: dict[str, object] = {
        "kind": "average",
        "models": [f"model{number}" for number in range(n)],
        "weights": weights,
        "ema": None,
        "rules": [],
        "method": {"name": "linear", "sum": "one"},
        "base_model": None,
        "dtype": "keep",
    }
    return AverageStage.model_validate(values | changes)


def merging(n: int = 1, **changes: object) -> MergeStage:
    """A stage that merges the adapters of n models."""
    values: dict[str, object] = {
        "kind": "merge",
        "init_from": "lora0",
        "adapters": [f"lora{number}" for number in range(1, n)],
        "weights": None,
        "base": "trained",
        "arithmetic": "fp32",
        "dtype": "keep",
    }
    return MergeStage.model_validate(values | changes)


def add_lora(loaded: Loaded, seed: int = 0, **changes: object) -> None:
    """Wraps the LLM and gives B values, as if it had been trained."""
    shape = {
        "r": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "targets": "all-linear",
        "bias": "none",
        "modules_to_save": [],
        **changes,
    }
    tune.apply(loaded.vlm, Tune(llm="lora", tower="freeze", connector="freeze"), Lora(**shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.vlm.llm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(loaded: Loaded) -> torch.Tensor:
    """Answers of a model to a fixed batch."""
    ids = torch.tensor([[0, 7, *[IMAGE_TOKEN] * N_PATCHES, 9, 10]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded.vlm(ids, torch.ones_like(ids), pixels).logits


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    """A model assembled from folders that are no artifact."""
    return pico_loaded(tmp_path / "pico")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes artifacts of models that share everything but what their seed changes."""
    from vlmrun.formats.load import load

    base = save(tmp_path / "base", pico_loaded(tmp_path / "pico"))

    def build(name: str, seed: int, *changed: str, adapter: bool = False, **lora: object) -> Path:
        one = load(base, dtype=torch.float32, attention="sdpa")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for part in changed:
                for parameter in one.vlm.get_submodule(part).parameters():
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.05
        if adapter:
            add_lora(one, seed, **lora)
        return save(tmp_path / name, one, *changed, adapter=adapter)

    return build
