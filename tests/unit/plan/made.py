"""Small stages and models for tests of the plan."""

from __future__ import annotations

from typing import Any

from tests.integration.jobs import HARDWARE, STAGE
from vlmrun.arch.sizes import Shapes
from vlmrun.cli import train
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.plan import run as planning


def stage(**changes: Any) -> TrainStage:
    return TrainStage.model_validate({**STAGE, "global_batch": 128, "micro_batch": 16, "zero": 3, **changes})


def hardware(**changes: Any) -> HardwareConfig:
    values = {**HARDWARE, "gpu": "a100_80g", "ranks_per_node": 8, "precision": "bf16", "launcher": "torchrun"}
    return HardwareConfig.model_validate(values | changes)


def llava_7b() -> Shapes:
    found, _ = planning.shapes(train.compose(["+recipe=llava15_7b"], []).model)
    assert found is not None
    return found
