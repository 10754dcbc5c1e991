"""Bytes of the output head and the loss: all logits at once, or those of some supervised positions at a time."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch.sizes import Llm
from vlmrun.config.schema import TrainStage
from vlmrun.ids import FP32_LOGITS_CPU, FP32_LOGITS_GPU
from vlmrun.plan.activations import FP32, Batch


@dataclass(frozen=True)
class Loss:
    """Kept from forward to backward; and beside that, at the fullest moment of each."""

    kept: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Numbers:
    """What a loss is computed in: bytes of a value, whether those two are fp16, and whether on a CPU."""

    s: int
    fp16: bool
    on_cpu: bool


def loss(llm: Llm, stage: TrainStage, batch: Batch, numbers: Numbers) -> Loss:
    """Of a micro batch, the way `stage.loss_head` says."""
    trained = stage.tune.llm == "full"
    if stage.loss_head == "plain":
        return _plain(llm, batch, numbers.s)
    if stage.loss_head == "liger":
        return _ligers(llm, batch, numbers.s, trained=trained)
    return _chunked(llm, batch, numbers, chunk=stage.loss_chunk, trained=trained)


def _plain(llm: Llm, batch: Batch, s: int) -> Loss:
    """All logits, then the supervised ones in fp32; backward the gradient of all logits, once more while it is cut."""
    logits, supervised = batch.rows * llm.vocab * s, batch.supervised * llm.vocab * FP32
    return Loss(kept=supervised, forward=logits + supervised, backward=max(2 * logits, 2 * supervised))


def _chunked(llm: Llm, batch: Batch, numbers: Numbers, *, chunk: int, trained: bool) -> Loss:
    """Gradients are made in the forward pass: of the supervised rows, and of a head that learns.

    A head in bf16 has its gradient out of one product for few rows, else as a sum in fp32, copied in the end.
    """
    s, half = numbers.s, numbers.s < FP32
    at_once = trained and half and not numbers.fp16 and batch.supervised <= 2 * llm.hidden
    rows, head = batch.supervised * llm.hidden, llm.n_embedding if trained else 0
    kept = rows * (FP32 if numbers.fp16 else s) + head * (s if at_once else FP32)
    copied = head * s if half and not at_once else 0
    logits = (batch.supervised if at_once else min(chunk, batch.supervised)) * llm.vocab
    in_fp32 = min(logits, FP32_LOGITS_CPU if numbers.on_cpu else FP32_LOGITS_GPU)
    # Probabilities, and logits if they are not in fp32 already; in fp16 the gradient is a matrix of its own.
    forward = logits * (s + (FP32 if numbers.fp16 else 0)) + in_fp32 * FP32 * (2 if half else 1)
    return Loss(kept=kept, forward=rows * s + forward, backward=batch.rows * llm.hidden * s + copied)


def _ligers(llm: Llm, batch: Batch, s: int, *, trained: bool) -> Loss:
    """A chunk is as many positions as make logits about as large as all hidden states, a power of two.

    Source: liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py
    """
    positions = -(-batch.supervised // -(-llm.vocab // llm.hidden))
    chunk = int(1 << (max(1, positions) - 1).bit_length())
    rows, head = batch.supervised * llm.hidden, llm.n_embedding if trained else 0
    logits = min(chunk, batch.supervised) * llm.vocab * (FP32 if s == FP32 else FP32 + s)
    handed = batch.rows * llm.hidden * s + (head * s if s < FP32 else 0)
    return Loss(kept=rows * s + head * FP32, forward=rows * s + logits, backward=handed)
