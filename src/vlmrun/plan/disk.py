"""Bytes that stages leave on disk, and what merging, averaging and evaluating need in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmrun.arch.sizes import Shapes, counts
from vlmrun.config.schema import (
    Asking,
    AverageStage,
    ConvertStage,
    HardwareConfig,
    MergeStage,
    SearchStage,
    TrainStage,
)

FP32 = 4
_SLICE = 2**19  # elements that weights/writer.py works on at a time
# Slices in fp32 for each tensor that is made: what `make bench-merge` measured of the method (ties) and the format
# (megatron) that hold most.
_HELD, _HELD_CONVERTING = 30, 12
_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Disk:
    """Bytes: of one checkpoint, of all that lie there at once, of the finished weights."""

    checkpoint: int
    checkpoints: int
    artifact: int


def train(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, steps: int | None) -> Disk:
    """A checkpoint holds trained weights, their fp32 masters if any, and both moments; frozen parts are linked.

    One more than `save_total_limit` lies there while it is written, and with `keep_best` that of the best model.
    """
    found = counts(shapes, stage.tune, stage.lora)
    size = _SIZES[hardware.precision] if stage.engine == "deepspeed" else FP32
    masters = FP32 if stage.engine == "deepspeed" and (stage.zero > 0 or size < FP32) else 0
    # Each of the ranks that share the LLM's layers writes its piece, and what is whole on all of them.
    sharing = hardware.tensor_parallel
    piece = counts(replace(shapes, llm=shapes.llm.cut(sharing)), stage.tune, stage.lora)
    checkpoint = sharing * sum(part.trained for part in piece.values()) * (size + masters + 2 * FP32)
    kept = stage.save_total_limit + 1 + (stage.keep_best is not None)
    # The best model is saved whenever it comes.
    often = steps is None or stage.keep_best is not None
    saved = kept if often else -(-(steps or 0) // stage.save_steps)
    written = {"full": found["llm"].total, "new_tokens": found["llm"].total}.get(stage.tune.llm, found["llm"].trained)
    written += found["tower"].total if stage.tune.tower == "full" else 0
    written += found["connector"].total
    return Disk(checkpoint, checkpoint * min(saved, kept), written * size)


Made = MergeStage | AverageStage | SearchStage


def merged(shapes: Shapes, stage: Made, hardware: HardwareConfig) -> tuple[int, int]:
    """Bytes of the model that is made, and of the computer's memory meanwhile: slices of tensors."""
    size = _SIZES.get(stage.dtype, _SIZES[hardware.precision])
    models = 1 + len(stage.adapters) if isinstance(stage, MergeStage) else len(stage.models)
    whole = shapes.llm.n_parameters if isinstance(stage, MergeStage) else shapes.n_parameters
    return whole * size, (models + _HELD) * _at_once(hardware) * _SLICE * FP32


def converted(shapes: Shapes, stage: ConvertStage, hardware: HardwareConfig) -> tuple[int, int]:
    """The same of a model in another format."""
    whole = shapes.n_parameters * _SIZES.get(stage.dtype, _SIZES[hardware.precision])
    return whole, _HELD_CONVERTING * _at_once(hardware) * _SLICE * FP32


def _at_once(hardware: HardwareConfig) -> int:
    """Tensors that are made at a time, as weights/writer.py (Makers) decides."""
    return max(2, min(hardware.threads, 8))


def evaluated(shapes: Shapes, stage: Asking, hardware: HardwareConfig, length: int) -> int:
    """Memory of answering a batch: weights, keys and values of every token, the logits of one position each."""
    llm, size = shapes.llm, _SIZES[hardware.precision]
    tokens = stage.batch * (length + stage.max_new_tokens)
    cache = 2 * llm.layers * llm.kv_heads * llm.head_dim * tokens * size
    return shapes.n_parameters * size + cache + stage.batch * llm.vocab * FP32
