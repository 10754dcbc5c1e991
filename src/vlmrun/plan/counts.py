"""Parameters of each part as a stage trains them."""

from __future__ import annotations

from vlmrun.arch import counts as parts
from vlmrun.arch.counts import Counts
from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import TrainStage


def counts(shapes: Shapes, stage: TrainStage) -> dict[str, Counts]:
    """Of each part, how many there are and how many are trained."""
    return parts.counts(shapes, stage.tune, stage.lora, tower_lora=derived.tower_lora(stage))
