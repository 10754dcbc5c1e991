"""Bytes that training leaves on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.kinds import needs
from vlmrun.kinds.needs import FP32
from vlmrun.plan import states
from vlmrun.plan.counts import counts


@dataclass(frozen=True)
class Disk:
    """Bytes: of one checkpoint, of all that lie there at once, of the finished weights."""

    checkpoint: int
    checkpoints: int
    artifact: int


def train(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, steps: int | None) -> Disk:
    """A checkpoint holds trained weights, their fp32 masters if any, and both moments; frozen parts are linked.

    One more than `save_total_limit` is there while it is written, and with `keep_best` that of the best model.
    """
    found = counts(shapes, stage)
    size = needs.written(1, "keep", hardware) if stage.engine == "deepspeed" else FP32
    masters = FP32 if stage.engine == "deepspeed" and (stage.zero > 0 or size < FP32) else 0
    # Each of the ranks that share the LLM's layers writes its piece, and what is whole on all of them.
    sharing = hardware.tensor_parallel
    piece = counts(replace(shapes, llm=shapes.llm.cut(sharing)), stage)
    checkpoint = sharing * sum(part.trained for part in piece.values()) * (size + masters)
    checkpoint += FP32 * sum(part.trained for part in found.values()) if stage.ema is not None else 0
    checkpoint += sharing * states.moment_bytes(stage, sum(part.trained for part in piece.values()))
    kept = stage.save_total_limit + 1 + (stage.keep_best is not None)
    # The best model is saved whenever it comes.
    often = steps is None or stage.keep_best is not None
    saved = kept if often else derived.times(stage.save_steps, steps or 0, stage.epochs or 1.0)
    written = {"full": found["llm"].total, "new_tokens": found["llm"].total}.get(stage.tune.llm, found["llm"].trained)
    written += shapes.tower.n_parameters if stage.tune.sees else 0
    written += found["connector"].total
    return Disk(checkpoint, checkpoint * min(saved, kept), written * size)
