"""Who runs forward, backward and the update: plain PyTorch on one rank, DeepSpeed, or PyTorch's FSDP2.

All do the same arithmetic; the plain one is what tests compare with. The loop sees only `Engine`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.train.engine.base import Engine
from vlmrun.train.engine.deepspeed import DeepSpeedEngine, quiet, start_deepspeed
from vlmrun.train.engine.fsdp import FsdpEngine
from vlmrun.train.engine.plain import PlainEngine
from vlmrun.train.optim import Group

__all__ = ["DeepSpeedEngine", "Engine", "FsdpEngine", "PlainEngine", "create", "quiet", "start_deepspeed"]


def create(
    vlm: nn.Module, groups: list[Group], stage: TrainStage, hardware: HardwareConfig, config: dict[str, Any] | None
) -> Engine:
    """The engine a stage asks for; `config` is the DeepSpeed dict, or None for the other engines."""
    if config is not None:
        return DeepSpeedEngine(vlm, groups, stage, config)
    if stage.engine == "fsdp":
        return FsdpEngine(vlm, groups, stage, hardware)
    return PlainEngine(vlm, groups, stage, hardware)
