"""The optimizer and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun.config.marks import Neutral
from vlmrun.config.schema.base import Count, Factor, Fraction, Node, Positive, Rate


class Ema(Node):
    """An exponential moving average of what is trained, beside the training."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)]  # share of the average that stays at each update of it
    every: Positive  # updates of the weights between two of the average
    result: bool  # the average is the result of the stage; false: it is in the checkpoints only


OptimizerName = Literal["adamw", "cpu_adam", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


class Optim(Node):
    """AdamW and its schedule. Part rates default to `lr` when null, and all of them fall in proportion."""

    lr: Rate
    # adamw: torch's, fused; cpu_adam: DeepSpeed's, for offload; the others are bitsandbytes'
    optimizer: Annotated[OptimizerName, Neutral("adamw")]
    connector_lr: Rate | None
    tower_lr: Rate | None
    weight_decay: Rate
    weight_decay_end: Annotated[Rate | None, Neutral(None)]  # what it grows to over all updates; null: it stays
    weight_decay_schedule: Annotated[Literal["constant", "linear", "cosine"], Neutral("constant")]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Factor
    schedule: Literal["cosine", "linear", "polynomial", "constant", "inverse_sqrt", "wsd"]
    power: Annotated[Factor, Neutral(1.0)]  # of polynomial; 1: linear
    min_lr_ratio: Fraction  # share of the rate that every schedule but constant ends at
    min_lr: Annotated[Rate | None, Neutral(None)]  # the same as a rate, of `lr`; null: min_lr_ratio tells
    decay_steps: Annotated[Positive | None, Neutral(None)]  # updates until the lowest rate, warm-up included; null: all
    decay_ratio: Annotated[Fraction | None, Neutral(None)]  # the same as a share of all; not of wsd
    cooldown_steps: Annotated[Positive | None, Neutral(None)]  # wsd: updates in which the rate falls at the end
    cooldown_ratio: Annotated[Fraction | None, Neutral(None)]  # the same as a share of all; both null: a tenth
    cooldown_shape: Annotated[Literal["linear", "cosine", "exponential", "one_minus_sqrt"], Neutral("cosine")]
    warmup_ratio: Fraction | None  # share of the steps; the first update has rate 0, as in transformers
    warmup_steps: Count | None  # the same in updates; one of the two is null
    warmup_from: Annotated[Rate, Neutral(0.0)]  # rate that the warm-up begins at
    max_grad_norm: Rate  # 0 = no clipping

    @property
    def eight_bits(self) -> bool:
        """Whether the optimizer's moments are held in 8 bits."""
        return self.optimizer.endswith("8bit")

    @property
    def paged(self) -> bool:
        """Whether they move to host memory when the GPU's is full."""
        return self.optimizer.startswith("paged")
