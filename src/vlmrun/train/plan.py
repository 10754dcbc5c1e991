"""All the training loop needs besides the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlmrun.config.schema import TrainStage
from vlmrun.data.collate import Use
from vlmrun.train.checkpoint.policy import Saver
from vlmrun.train.log import Tracker

Batch = dict[str, Any]


@dataclass
class Plan:
    """All the loop needs besides the engine.

    Args:
        name: of the stage, for messages.
        batches: (step, this rank's micro batches), steps counting from 0.
        done: steps finished before this process began.
        rate: the schedule's factor, by steps finished.
        weight_decay: by steps finished; None: it stays.
        saver: writes checkpoints.
        evaluate: evaluates the model after N finished steps on held-out data, if that is due, given the loss of the
            last one; true when it is the best one so far, which has to be kept.
        updated: called after N finished steps when the last one changed the weights.
        is_over: whether training ends after N finished steps, before all of them (`eval.patience`, `until_loss`), given
            the loss of the last one.
        loss: of the last of the steps that are done.
        skipped: takes samples that were left out while loading.
        used: takes the samples of one of this rank's micro batches: its step, counting from 1, a `Use` of each, and
            the losses of their supervised tokens, where those are asked for.
    """

    name: str
    stage: TrainStage
    batches: Iterable[tuple[int, list[Batch]]]
    steps: int
    done: int
    epoch: Callable[[int], float]
    rate: Callable[[int], float]
    saver: Saver
    evaluate: Callable[[int, float | None], bool]
    skipped: Callable[[list[dict[str, Any]]], None]
    used: Callable[[int, list[Use], Tensor | None], None] = lambda step, uses, losses: None
    trackers: list[Tracker] = field(default_factory=list)
    weight_decay: Callable[[int], float] | None = None
    updated: Callable[[int], None] = lambda finished: None
    is_over: Callable[[int, float | None], bool] = lambda finished, loss: False
    loss: float | None = None
