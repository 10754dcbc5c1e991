"""What a rank holds of weights, gradients and optimizer: plain, at each ZeRO stage, and under FSDP (`fsdp.py`).

Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py, stage3.py and partitioned_param_coordinator.py,
runtime/bf16_optimizer.py, runtime/fp16/unfused_optimizer.py; torch 2.13 optim/adamw.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vlmrun.arch.counts import Counts
from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.hardware import gpus
from vlmrun.plan.counts import counts
from vlmrun.zero import config as zero

FP32 = 4
_SENT = 500_000_000  # elements that DeepSpeed sends at once where it has no buckets


@dataclass(frozen=True)
class Setting:
    """How a stage is trained, as far as its states depend on it.

    Attributes:
        fsdp: PyTorch's FSDP2; `zero` then says whether weights are freed after each block (3) or not (2).
        zero: ZeRO stage; the plain engine is stage 0.
        ranks: that share what is partitioned; those that share the LLM's layers hold other pieces of it.
        size: bytes of a weight that is computed with (2: with fp32 masters, or under FSDP fp32 pieces).
        optimizer_at, weights_at: none, cpu or nvme.
        accumulates: whether an update takes more than one micro batch.
        secondary: ranks that share a second copy of the weights (ZeRO++); 1: there is none.
    """

    fsdp: bool
    zero: int
    ranks: int
    size: int
    bf16: bool
    on_cpu: bool
    optimizer_at: str
    weights_at: str
    accumulates: bool
    secondary: int
    bucket: int
    overlaps: bool
    reuse: int
    sub_group: int


def setting(stage: TrainStage, hardware: HardwareConfig, hidden: int) -> Setting:
    """Read from the same dict that DeepSpeed gets."""
    plain, deepspeed = stage.engine == "plain", stage.engine == "deepspeed"
    asked = 0 if plain else stage.zero
    uses_zero = deepspeed and asked > 0
    config = zero.deepspeed_config(stage, hardware, hidden_dim=hidden)["zero_optimization"] if uses_zero else {}
    offloads = zero.offloads(stage) if uses_zero else {}
    fsdp_at = stage.offload if stage.engine == "fsdp" else "none"
    return Setting(
        fsdp=stage.engine == "fsdp",
        zero=asked,
        ranks=derived.ranks(hardware) // hardware.tensor_parallel,
        size=FP32 if plain or hardware.precision == "fp32" else 2,
        bf16=hardware.precision == "bf16",
        on_cpu=gpus.find(hardware.gpu).is_cpu,
        optimizer_at=offloads.get("offload_optimizer", fsdp_at),
        weights_at=offloads.get("offload_param", fsdp_at),
        accumulates=derived.accumulation(stage, hardware) > 1,
        secondary=config.get("zero_hpz_partition_size", 1),
        bucket=config.get("reduce_bucket_size", 0),
        overlaps=bool(config.get("overlap_comm", False)),
        reuse=config.get("stage3_max_reuse_distance", 0),
        sub_group=config.get("sub_group_size", 0),
    )


class Buffers(NamedTuple):
    """Bytes that sending gradients takes beside them.

    Attributes:
        idle: before the backward pass.
        first: while the gradients of the LLM's last block are sent.
        last: while those of its first block are.
        after: what is sent when the backward pass is over.
        update: while the optimizer works.
    """

    idle: int = 0
    first: int = 0
    last: int = 0
    after: int = 0
    update: int = 0


@dataclass(frozen=True)
class States:
    """Bytes on one device; in host memory (`host`) and on a drive (`drive`), per rank.

    Attributes:
        gradients: there from the first to the last moment (buffers that are never given back).
        growing: of one micro batch, complete when the backward pass ends.
        kept: of earlier micro batches, there when another forward pass begins. In 16 bits and without ZeRO they are
            the same tensors as `growing`; else both are there when the backward pass ends.
        left: of `growing`, when the optimizer begins.
        gathered: weights of other ranks where forward turns into backward; `gathered_last` where that ends.
        updating: beside everything else while the optimizer works.
    """

    weights: int
    masters: int
    optimizer: int
    gradients: int
    growing: int
    kept: int
    left: int
    buffers: Buffers
    gathered: int
    gathered_last: int
    updating: int
    host: int
    drive: int


def states(shapes: Shapes, stage: TrainStage, saved: int, one: Setting) -> States:
    """The states of a rank under DeepSpeed or the plain engine.

    Args:
        shapes: what this rank computes with.
        saved: bytes by which quantized weights are smaller (qlora); those are never partitioned.
    """
    parts = counts(shapes, stage)
    total = sum(part.total for part in parts.values())
    trained = sum(part.trained for part in parts.values())
    largest = max(part.trained for part in parts.values())  # matrices of one part are one group of the optimizer
    weights = share(total * one.size, one.ranks if one.zero == 3 else 1) - saved
    masters = 0 if one.zero == 0 and one.size == FP32 else FP32 * trained
    moments = moment_bytes(stage, trained)
    paged, moments = (moments, 0) if stage.optim.paged else (0, moments)
    moments += FP32 * trained if stage.ema is not None else 0  # the average is split as they are
    if one.zero > 0:
        masters, moments, paged, largest = (share(n, one.ranks) for n in (masters, moments, paged, largest))
    found, buffer = _gradients(trained, largest, one)
    away = {"none": 0, "cpu": 0, "nvme": 0}
    if one.optimizer_at != "none":
        # Gradients of this rank's share are summed there too.
        away[one.optimizer_at] += masters + moments + share(FP32 * trained, one.ranks)
        found = found | {"gradients": 0, "kept": 0, "updating": 0}
        found["growing"] = min(found["growing"], one.size * 2 * one.bucket)
        masters, moments = 0, 0
    if one.weights_at != "none":
        away[one.weights_at] += weights
        weights = 0
    if one.secondary > 1:
        weights += share(total * one.size, one.secondary)
    return States(
        weights=weights,
        masters=masters,
        optimizer=moments,
        buffers=_buffers(buffer, one, llm_learns=parts["llm"].trained > 0),
        gathered=_gathered(shapes, parts, stage, one),
        gathered_last=0,
        host=away["cpu"] + paged,
        drive=away["nvme"],
        **{"left": found["growing"]} | found,
    )


def moment_bytes(stage: TrainStage, trained: int) -> int:
    """Both moments: in fp32, or in 8 bits with an fp32 scale for every 256 values.

    Paged ones are counted in host memory, where they are while something else needs the GPU's.
    Source: bitsandbytes 0.50 optim/optimizer.py
    """
    each = 1 + FP32 / 256 if stage.optim.eight_bits else FP32
    return int(2 * each * trained)


def share(n: int, ranks: int) -> int:
    """A rank's part of what is cut into equal pieces."""
    return -(-n // ranks)


def _buffers(n_bytes: int, one: Setting, *, llm_learns: bool) -> Buffers:
    """ZeRO-3's are there for good; those of the others while there is something to send."""
    if one.zero == 3:
        return Buffers(*[n_bytes] * 5)
    if one.zero == 0 or (one.zero == 1 and one.size < FP32):
        return Buffers(after=n_bytes)
    waits = one.zero == 1 and one.accumulates
    # The first gradients are those of the LLM.
    return Buffers(idle=n_bytes if waits else 0, first=n_bytes if llm_learns or waits else 0, last=n_bytes)


def _gathered(shapes: Shapes, parts: dict[str, Counts], stage: TrainStage, one: Setting) -> int:
    """Weights of other ranks that ZeRO-3 has gathered where forward turns into backward.

    A weight is kept when it is needed again within `stage3_max_reuse_distance` elements: the last of the LLM's, which
    the backward pass (and before it the recomputation) needs first. On top: the next bucket, and the largest module.
    """
    if one.zero != 3 or one.ranks == 1:
        return 0
    reused = parts["llm"].total + parts["connector"].total
    reused += parts["tower"].total if stage.tune.sees else 0
    distance = one.reuse // (3 if stage.gradient_checkpointing else 2)
    if reused <= distance:
        return reused * one.size
    largest = max(shapes.llm.n_embedding, shapes.llm.n_block)
    return (distance + one.bucket * 9 // 10 + largest) * one.size


def _gradients(trained: int, group: int, one: Setting) -> tuple[dict[str, int], int]:
    """Gradients and the optimizer's own needs, and the buffer in which gradients are gathered to be sent.

    AdamW is one kernel that needs no room of its own; where the gradients of a group are not flat already, a flat copy
    is made for it.
    """
    own, whole, piece = one.size * trained, FP32 * trained, share(FP32 * trained, one.ranks)
    buffer = one.bucket * one.size * (2 if one.overlaps else 1)
    if one.zero == 0:
        flat = min(whole, FP32 * _SENT) if one.ranks > 1 else 0  # one flat copy is sent
        extra = whole if one.size < FP32 else 0
        found = {"gradients": 0, "growing": own + extra, "kept": own if one.accumulates else 0}
        return found | {"updating": 0}, flat
    if one.zero == 3:
        # One fp32 buffer for this rank's share, and one bucket, for good; the flat copy is of a sub-group at most.
        flat = FP32 * min(group, one.sub_group)
        found = {"gradients": piece, "growing": 0, "kept": 0}
        return found | {"updating": flat}, buffer
    if one.size == FP32:
        growing = whole if one.zero == 1 else min(whole, piece + buffer)
        # Below ZeRO-2 nothing is sent before the last micro batch, and the bucket is not given back.
        kept = whole if one.zero == 1 else piece
        found = {"gradients": 0, "growing": growing, "kept": kept if one.accumulates else 0}
        # Those of other ranks are gone when this rank's are made flat.
        return found | {"left": min(growing, piece), "updating": FP32 * group}, buffer
    if one.zero == 1:
        # In fp32 for all parameters, not only this rank's; beside them the 16-bit ones, which stay until the update.
        found = {"gradients": whole if one.bf16 else 0, "growing": own + (0 if one.bf16 else whole)}
        # A flat copy in fp32, and that again in 16 bits, is sent.
        sent = min(trained, _SENT) * (FP32 + one.size) if one.bf16 else 0
        return found | {"kept": own if one.accumulates else 0, "updating": 0}, sent
    # ZeRO-2 in 16 bits: one flat fp32 sum of this rank's share, from the first bucket of the update on.
    found = {"gradients": 0, "growing": piece, "kept": piece if one.accumulates else 0}
    return found | {"updating": 0}, buffer
