"""Parameters of each part as a stage trains them."""

from __future__ import annotations

from vlmrun.arch import sizes
from vlmrun.arch.sizes import Counts, Shapes
from vlmrun.config import derived
from vlmrun.config.schema import TrainStage


def counts(shapes: Shapes, stage: TrainStage) -> dict[str, Counts]:
    """Of each part, how many there are and how many are trained."""
    return sizes.counts(shapes, stage.tune, stage.lora, tower_lora=derived.tower_lora(stage))
