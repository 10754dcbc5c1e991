"""What stages that do not train need: bytes on disk, and of memory while they work."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import HardwareConfig

FP32 = 4
_BLOCK = 2**19  # elements that weights/writer.py works on at a time
# Blocks in fp32 for each tensor that is made, besides those of the models: what `make bench-merge` measured of the
# method (ties) that holds most. A conversion holds as many as were measured of the format (megatron) that holds most.
_HELD, HELD_CONVERTING = 30, 12
_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Needs:
    """Bytes on disk and of memory, and whether that is a GPU's memory or the host's."""

    disk: int = 0
    memory: int = 0
    on_gpu: bool = False


def written(n_parameters: int, dtype: str, hardware: HardwareConfig) -> int:
    """Bytes of weights in a type, `keep` being the one they were trained in."""
    return n_parameters * _SIZES.get(dtype, _SIZES[hardware.precision])


def combining(n_models: int, hardware: HardwareConfig) -> int:
    """Bytes of host memory for one model made of several, a block of every tensor at a time."""
    return blocks(n_models + _HELD, hardware)


def blocks(n_held: int, hardware: HardwareConfig) -> int:
    """Bytes of a number of blocks for each of the tensors that are made at a time, as weights/writer.py decides."""
    return n_held * max(2, min(hardware.threads, 8)) * _BLOCK * FP32


def answering(batch: int, tokens: int, shapes: Shapes, hardware: HardwareConfig) -> int:
    """Bytes for answering a batch: weights, keys and values of every token, the logits of one position each.

    Args:
        tokens: of a question and its answer, at most.
    """
    llm, size = shapes.llm, _SIZES[hardware.precision]
    cache = 2 * llm.layers * llm.kv_heads * llm.head_dim * batch * tokens * size
    return shapes.n_parameters * size + cache + batch * llm.vocab * FP32
