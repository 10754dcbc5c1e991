"""Bytes of the output head and the loss: all logits at once, or those of some supervised positions at a time."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.config.schema import TrainStage
from vlmrun.plan.activations import FP32, Batch
from vlmrun.plan.shapes import Llm


@dataclass(frozen=True)
class Loss:
    """Kept from forward to backward; and beside that, at the fullest moment of each."""

    kept: int
    forward: int
    backward: int


def loss(llm: Llm, stage: TrainStage, batch: Batch, s: int, *, fp16: bool) -> Loss:
    """Of a micro batch, the way `stage.loss_head` says."""
    if stage.loss_head == "plain":
        return _plain(llm, batch, s)
    chunk = stage.loss_chunk if stage.loss_head == "chunked" else _ligers_chunk(llm, batch.supervised)
    return _chunked(llm, batch, s, chunk=chunk, trained=stage.tune.llm == "full", fp16=fp16)


def _ligers_chunk(llm: Llm, supervised: int) -> int:
    """Positions whose logits take about as much as the hidden states of all, rounded up to a power of two.

    Source: liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py
    """
    positions = -(-supervised // -(-llm.vocab // llm.hidden))
    return int(1 << (max(1, positions) - 1).bit_length())


def _plain(llm: Llm, batch: Batch, s: int) -> Loss:
    """All logits, then the supervised ones in fp32; backward the gradient of all logits, once more while it is cut."""
    logits, supervised = batch.rows * llm.vocab * s, batch.supervised * llm.vocab * FP32
    return Loss(kept=supervised, forward=logits + supervised, backward=max(2 * logits, 2 * supervised))


def _chunked(llm: Llm, batch: Batch, s: int, *, chunk: int, trained: bool, fp16: bool) -> Loss:
    """Gradients are made in the forward pass: of the supervised rows, and of a head that learns, in fp32."""
    rows = batch.supervised * llm.hidden
    head = llm.n_embedding if trained else 0
    kept = rows * (FP32 if fp16 else s) + head * FP32
    at_once = min(chunk, batch.supervised) * llm.vocab * (FP32 if s == FP32 else FP32 + s)
    handed = batch.rows * llm.hidden * s + (head * s if s < FP32 else 0)
    return Loss(kept=kept, forward=rows * s + at_once, backward=handed)
