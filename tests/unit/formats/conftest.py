"""Pico models as folders of ours, and short words for converting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pico import pico_loaded
from vlmrun.data import templates
from vlmrun.formats.base import How
from vlmrun.formats.convert import compare, convert
from vlmrun.model import tune
from vlmrun.model.parts import Loaded
from vlmrun.weights import native


def saved(folder: Path, loaded: Loaded, *, aspect: str = "square", template: str = "micro") -> Path:
    """A weights folder; adapters go along."""
    state = {name: value for name, value in loaded.vlm.llm.named_parameters() if "lora_" in name}
    native.save(
        folder,
        loaded,
        template=templates.get(template).to_dict(),
        image_aspect=aspect,
        tensors={},
        adapter=(tune.adapter_config(loaded.vlm.llm), state) if state else None,
    )
    return folder


def to(source: Path, destination: Path, format: str, **how: Any) -> dict[str, Any]:
    """Converts without the proof unless it is asked for."""
    prove = how.pop("prove", False)
    return convert(source, destination, format, How(**how), prove=prove)


def differences(first: Path, second: Path, **how: Any) -> list[str]:
    """What `--check` would list."""
    return [problem.what for problem in compare(first, second, How(**how))]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model: CLIP, two-layer MLP, Llama. Tests read it only."""
    folder = tmp_path_factory.mktemp("model")
    return saved(folder / "weights", pico_loaded(folder / "pico"))
