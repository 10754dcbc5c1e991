"""Bytes that stages leave on disk, and what merging, averaging and evaluating need in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmrun.config.schema import AverageStage, EvaluateStage, HardwareConfig, MergeStage, TrainStage
from vlmrun.plan.shapes import Shapes, counts

FP32 = 4
_SHARD = 5e9  # checkpoints/tensors.py writes shards of this size, and holds one while it does
_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Disk:
    """Bytes: of one checkpoint, of all that lie there at once, of the finished weights."""

    checkpoint: int
    checkpoints: int
    artifact: int


def train(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, steps: int | None) -> Disk:
    """A checkpoint holds trained weights, their fp32 masters if any, and both moments; frozen parts are linked.

    One more than `save_total_limit` lies there while it is written.
    """
    found = counts(shapes, stage.tune, stage.lora)
    size = _SIZES[hardware.precision] if stage.engine == "deepspeed" else FP32
    masters = FP32 if stage.engine == "deepspeed" and (stage.zero > 0 or size < FP32) else 0
    # Each of the ranks that share the LLM's layers writes its piece, and what is whole on all of them.
    sharing = hardware.tensor_parallel
    piece = counts(replace(shapes, llm=shapes.llm.cut(sharing)), stage.tune, stage.lora)
    checkpoint = sharing * sum(part.trained for part in piece.values()) * (size + masters + 2 * FP32)
    saved = stage.save_total_limit + 1 if steps is None else -(-steps // stage.save_steps)
    written = {"full": found["llm"].total, "new_tokens": found["llm"].total}.get(stage.tune.llm, found["llm"].trained)
    written += found["tower"].total if stage.tune.tower == "full" else 0
    written += found["connector"].total
    return Disk(checkpoint, checkpoint * min(saved, stage.save_total_limit + 1), written * size)


def merged(shapes: Shapes, stage: MergeStage | AverageStage, hardware: HardwareConfig) -> tuple[int, int]:
    """Bytes on disk, and in the computer's memory: a shard, and a tensor of each model that goes into it in fp32."""
    size = _SIZES.get(stage.dtype, _SIZES[hardware.precision])
    models = len(stage.models) if isinstance(stage, AverageStage) else 1
    whole = shapes.n_parameters if isinstance(stage, AverageStage) else shapes.llm.n_parameters
    largest = shapes.llm.n_embedding * FP32
    return whole * size, int(min(_SHARD, whole * size)) + (models + 1) * largest


def evaluated(shapes: Shapes, stage: EvaluateStage, hardware: HardwareConfig, length: int) -> int:
    """Memory of answering a batch: weights, keys and values of every token, the logits of one position each."""
    llm, size = shapes.llm, _SIZES[hardware.precision]
    tokens = stage.batch * (length + stage.max_new_tokens)
    cache = 2 * llm.layers * llm.kv_heads * llm.head_dim * tokens * size
    return shapes.n_parameters * size + cache + stage.batch * llm.vocab * FP32
