"""What a rank holds of weights, gradients and optimizer at each ZeRO stage, and while the optimizer works.

Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py, stage3.py and partitioned_param_coordinator.py,
runtime/bf16_optimizer.py, runtime/fp16/unfused_optimizer.py; torch 2.13 optim/adamw.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.hardware import gpus, zero
from vlmrun.plan.shapes import Counts

FP32 = 4


@dataclass(frozen=True)
class Setting:
    """How a stage is trained, as far as its states depend on it.

    Attributes:
        zero: ZeRO stage; the plain engine is stage 0.
        ranks: that share what is partitioned.
        size: bytes of a weight (2: with fp32 masters).
        offloaded: masters and optimizer live in the computer's memory, under ZeRO-3 the weights too.
        accumulates: whether an update takes more than one micro batch.
    """

    zero: int
    ranks: int
    size: int
    bf16: bool
    on_cpu: bool
    offloaded: bool
    accumulates: bool
    bucket: int
    overlaps: bool
    reuse: int
    sub_group: int


def setting(stage: TrainStage, hardware: HardwareConfig, hidden: int) -> Setting:
    """Read from the same dict that DeepSpeed gets."""
    plain = stage.engine == "plain"
    ranks = hardware.nodes * hardware.ranks_per_node
    asked = 0 if plain else stage.zero
    config = zero.deepspeed_config(stage, hardware, hidden_dim=hidden)["zero_optimization"] if asked else {}
    return Setting(
        zero=asked,
        ranks=ranks,
        size=FP32 if plain or hardware.precision == "fp32" else 2,
        bf16=hardware.precision == "bf16",
        on_cpu=gpus.find(hardware.gpu).is_cpu,
        offloaded=stage.offload != "none" and asked > 0,
        accumulates=stage.global_batch > stage.micro_batch * ranks,
        bucket=config.get("reduce_bucket_size", 0),
        overlaps=bool(config.get("overlap_comm", False)),
        reuse=config.get("stage3_max_reuse_distance", 0),
        sub_group=config.get("sub_group_size", 0),
    )


@dataclass(frozen=True)
class States:
    """Bytes on one device, and (`host`) in the computer's memory per rank.

    Attributes:
        gradients: there from the first to the last moment (buffers that are never given back).
        growing: of one micro batch, complete when the backward pass ends.
        kept: of earlier micro batches, there when another forward pass begins. In 16 bits and without ZeRO they are
            the same tensors as `growing`; else both are there when the backward pass ends.
        buffers: in which gradients are gathered to be sent.
        updating: beside everything else while the optimizer works.
    """

    weights: int
    masters: int
    optimizer: int
    gradients: int
    growing: int
    kept: int
    buffers: int
    updating: int
    host: int


def states(counts: dict[str, Counts], saved: int, one: Setting) -> States:
    """The states of a rank.

    Args:
        saved: bytes by which weights held in few bits are smaller (qlora); those are never partitioned.
    """
    total = sum(part.total for part in counts.values())
    trained = sum(part.trained for part in counts.values())
    largest = max(part.trained for part in counts.values())  # matrices of one part are one group of the optimizer
    weights = _share(total * one.size, one.ranks if one.zero == 3 else 1) - saved
    masters = 0 if one.zero == 0 and one.size == FP32 else FP32 * trained
    moments = 2 * FP32 * trained
    if one.zero > 0:
        masters, moments = _share(masters, one.ranks), _share(moments, one.ranks)
        largest = _share(largest, one.ranks)
    found = _gradients(trained, largest, one)
    host = 0
    if one.offloaded:
        # Gradients of this rank's share are summed in pinned memory too.
        host = masters + moments + _share(FP32 * trained, one.ranks) + (weights if one.zero == 3 else 0)
        found = found | {"gradients": 0, "kept": 0, "updating": 0}
        found["growing"] = min(found["growing"], one.size * 2 * one.bucket)
        masters, moments, weights = 0, 0, 0 if one.zero == 3 else weights
    return States(weights=weights, masters=masters, optimizer=moments, host=host, **found)


def _share(n_bytes: int, ranks: int) -> int:
    return -(-n_bytes // ranks)


def _gradients(trained: int, group: int, one: Setting) -> dict[str, int]:
    """Gradients, buffers and the optimizer's own needs.

    AdamW needs room for one root of the second moments of a group at once on a GPU (foreach), on a CPU for two; where
    the gradients of a group are not flat already, a flat copy comes on top.
    """
    roots = FP32 * group * (2 if one.on_cpu else 1)
    own, whole, share = one.size * trained, FP32 * trained, _share(FP32 * trained, one.ranks)
    buffer = one.bucket * one.size * (2 if one.overlaps else 1)
    if one.zero == 0:
        flat = whole if one.ranks > 1 else 0  # one flat copy is sent
        extra = whole if one.size < FP32 else 0
        found = {"gradients": 0, "growing": own + extra, "kept": own if one.accumulates else 0, "buffers": flat}
        return found | {"updating": 0 if one.on_cpu else roots}  # tensor by tensor on a CPU
    if one.zero == 3:
        # One fp32 buffer for this rank's share, and one bucket, for good; the flat copy is of a sub-group at most.
        flat = FP32 * min(group, one.sub_group)
        found = {"gradients": share, "growing": 0, "kept": 0, "buffers": buffer}
        return found | {"updating": flat + min(roots, roots // max(group, 1) * one.sub_group)}
    if one.size == FP32:
        growing = whole if one.zero == 1 else min(whole, share + buffer)
        found = {"gradients": 0, "growing": growing, "kept": share if one.accumulates else 0, "buffers": buffer}
        return found | {"updating": FP32 * group + roots}
    if one.zero == 1:
        # In fp32 for all parameters, not only this rank's; beside them the 16-bit ones, which stay until the update.
        found = {"gradients": whole if one.bf16 else 0, "growing": own + (0 if one.bf16 else whole)}
        return found | {"kept": own if one.accumulates else 0, "buffers": 0, "updating": roots}
    # ZeRO-2 in 16 bits: one flat fp32 sum of this rank's share, from the first bucket of the update on.
    found = {"gradients": 0, "growing": share, "kept": share if one.accumulates else 0, "buffers": buffer}
    return found | {"updating": roots}
