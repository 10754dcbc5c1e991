"""A whole run: one composed recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun.config.schema.base import Name, Node, Seed
from vlmrun.config.schema.benchmark import Data
from vlmrun.config.schema.hardware import HardwareConfig
from vlmrun.config.schema.model import ModelConfig
from vlmrun.config.schema.stage import UserStage
from vlmrun.config.schema.tracking import Tracking

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class RunConfig(Node):
    """One composed recipe."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    seed: Seed
    output: Annotated[str, Field(min_length=1)]  # root of outputs/stages and outputs/runs
    only: list[str]  # run these stages only; their parents must be finished
    if_busy: Literal["wait", "fail"]  # when another process trains the same stage
    tracking: Tracking  # names, or {SERVICE: {project, entity, group, tags, mode}}; offline unless asked otherwise
    objective: str | None  # STAGE.NUMBER that a sweeper looks for the best of; null: see docs/guides/sweeps.md
    model: ModelConfig
    data: dict[Name, Data]
    stage: dict[Name, UserStage]
    hardware: HardwareConfig
