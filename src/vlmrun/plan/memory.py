"""The peak of memory of one update on one device: the fullest of its moments, term by term."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.plan import activations, fsdp, states
from vlmrun.plan.activations import FP32, Batch, Mode
from vlmrun.plan.counts import counts
from vlmrun.plan.loss import Loss, Numbers, loss

# A process that has created a CUDA context and loaded the kernels of cuBLAS and NCCL holds 0.4 to 0.7 GiB, by GPU and
# driver. From common experience, not measured here.
CONTEXT_BYTES = 700 * 2**20
# What PyTorch's allocator holds beyond live tensors. Assumed, not measured here.
FRAGMENTATION = 0.07
_ROW_BYTES = 17  # of a token in a batch: its id and its label (8 each), its mask (1)


@dataclass(frozen=True)
class Memory:
    """Bytes by term at the fullest moment.

    Attributes:
        moment: which one it is.
        moments: the total of each moment.
        elsewhere: terms that are only there at other moments, each at its largest.
        allowance: for the CUDA context and fragmentation; no tensors.
        host, drive: in host memory and on a drive, per rank (offload).
    """

    moment: str
    terms: dict[str, int]
    moments: dict[str, int]
    elsewhere: dict[str, int]
    allowance: int
    host: int
    drive: int

    @property
    def tensors(self) -> int:
        """All tensors alive at that moment: what the measured error is about."""
        return sum(self.terms.values())

    @property
    def total(self) -> int:
        """With the allowance."""
        return self.tensors + self.allowance


def peak(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, batch: Batch) -> Memory:
    """The fullest moment of an update."""
    shapes = replace(shapes, llm=shapes.llm.cut(hardware.tensor_parallel))
    one = states.setting(stage, hardware, shapes.llm.hidden)
    held = fsdp.states(shapes, stage, one) if one.fsdp else states.states(shapes, stage, _saved(shapes, stage), one)
    passing = _Passing.of(shapes, stage, batch, hardware, one)
    found = _moments(shapes, stage, one, held, passing)
    totals = {name: sum(terms.values()) for name, terms in found.items()}
    fullest = max(totals, key=lambda name: totals[name])
    terms = {name: n_bytes for name, n_bytes in found[fullest].items() if n_bytes}
    most = {name: max(others.get(name, 0) for others in found.values()) for moment in found.values() for name in moment}
    elsewhere = {name: n_bytes for name, n_bytes in most.items() if n_bytes and name not in terms}
    allowance = 0 if one.on_cpu else CONTEXT_BYTES + int(FRAGMENTATION * totals[fullest])
    return Memory(fullest, terms, totals, elsewhere, allowance, held.host + passing.host, held.drive)


def _saved(shapes: Shapes, stage: TrainStage) -> int:
    """Bytes that packing the blocks' linear layers into few bits saves.

    A scale for 64 values is fp32, or 8 bits and a share of a scale of scales (double).
    """
    if stage.quant is None or stage.tune.llm != "qlora":
        return 0
    n_weights = sum(linear.n_in * linear.n_out for block in shapes.llm.of_blocks for linear in block)
    scales = 0.0 if stage.quant.bits == 8 else (1 / 64 + FP32 / (64 * 256) if stage.quant.double else FP32 / 64)
    return 2 * n_weights - int(n_weights * (stage.quant.bits / 8 + scales))


@dataclass(frozen=True)
class _Passing:
    """What a micro batch needs on its way."""

    tower: int
    tower_kept: int
    connector: int
    llm: int
    block: int
    block_backward: int
    inputs: int
    loss: Loss
    host: int

    @classmethod
    def of(
        cls, shapes: Shapes, stage: TrainStage, batch: Batch, hardware: HardwareConfig, one: states.Setting
    ) -> _Passing:
        llm, tower = shapes.llm, shapes.tower
        trained, sees = stage.tune.llm == "full", stage.tune.sees
        squares, s = batch.squares * tower.squares, one.size
        piece, shared = batch.piece(hardware.sequence_parallel), hardware.sequence_parallel > 1
        mode = Mode(s, one.on_cpu, "sdpa" if shared else hardware.attention, shared)
        # Every rank of a group makes all embeddings, and its piece is a view of them.
        whole = (batch.rows - piece.rows) * llm.hidden * s if shared else 0
        # With nothing in front of it that learns, a frozen LLM would keep nothing; here the connector always may.
        lora = stage.lora if stage.tune.adapters else None
        together = derived.recomputed_together(stage)
        block = activations.block(llm, piece, mode, trained=trained, lora=lora)
        seen = activations.tower_kept(tower, squares, s, checkpointing=together > 0) if sees else 0
        kept = whole + activations.llm_kept(llm, piece, mode, trained=trained, lora=lora, together=together)
        away = 0
        if stage.offload_checkpoints and not one.on_cpu:
            checkpoints = activations.checkpoints(llm, piece, s, max(1, together))
            away, kept, seen = checkpoints + seen, kept - checkpoints, 0
        return cls(
            tower=activations.tower_passing(tower, squares, s),
            tower_kept=seen,
            connector=activations.connector_kept(shapes.connector, batch.squares, s),
            llm=kept,
            block=block * min(together, llm.layers),
            block_backward=activations.block_backward(llm, piece, mode, trained=trained or lora is not None),
            inputs=batch.rows * _ROW_BYTES + batch.squares * 3 * (tower.edge * tower.enlarged) ** 2 * FP32,
            loss=loss(llm, stage, piece, Numbers(s, hardware.precision == "fp16", one.on_cpu)),
            host=away,
        )


def _moments(
    shapes: Shapes, stage: TrainStage, one: states.Setting, held: states.States, passing: _Passing
) -> dict[str, dict[str, int]]:
    """Every moment that can be the fullest."""
    always = {
        "weights": held.weights,
        "fp32 masters": held.masters,
        "optimizer": held.optimizer,
        "gradients": held.gradients,
        "inputs": passing.inputs,
        "gradient buffers": held.buffers.idle,
    }
    kept = {
        "activations: tower": passing.tower_kept,
        "activations: connector": passing.connector,
        "activations: LLM": passing.llm,
    }
    live = {"gathered weights": held.gathered}
    before = always | {"gradients": held.gradients + held.kept}
    adds_in_place = one.fsdp or one.zero < 2 or one.size < FP32  # the sum of earlier micro batches is the same tensor
    grown = held.gradients + (max(held.growing, held.kept) if adds_in_place else held.growing + held.kept)
    sending = {"gradient buffers": held.buffers.first}
    late = always | {"gradient buffers": held.buffers.last, "gradients": grown}
    updating = {"gradient buffers": held.buffers.update, "gradients": held.gradients + held.left}
    block = {"one block, recomputed": passing.block, "one block, backward": passing.block_backward}
    last_block = block if stage.tune.llm != "freeze" else {}  # else no gradient is ready before the LLM's are done
    found = {
        "tower": before | live | {"activations: tower": passing.tower},
        "loss": before | live | kept | {"logits and loss": passing.loss.kept + passing.loss.forward},
        "backward begins": before | live | kept | {"logits and loss": passing.loss.kept + passing.loss.backward},
        "first block": before | live | kept | sending | block,
        "gradients are sent": late | {"gradient buffers": held.buffers.after},
        "backward ends": late | {"gathered weights": held.gathered_last} | kept | last_block | {"activations: LLM": 0},
        "update": always | updating | {"update": held.updating},
    }
    if one.zero == 2 and not one.fsdp:
        # The whole sum of this rank is there when the first bucket is full; blocks that filled it are done.
        left = {"activations: LLM": int(passing.llm * (1 - _done(shapes, stage, one)))}
        found["first bucket"] = late | live | kept | last_block | left
    return found


def _done(shapes: Shapes, stage: TrainStage, one: states.Setting) -> float:
    """Share of the LLM's blocks whose backward pass is over when the first bucket of gradients is full."""
    llm = shapes.llm
    trained = counts(shapes, stage)["llm"].trained
    whole = stage.tune.llm == "full" and stage.tune.llm_last is None
    head = llm.n_embedding if whole and not llm.tied else 0
    blocks = trained - head - (llm.n_embedding if whole else 0)
    return min(1.0, max(0, one.bucket - head) / blocks) if blocks > 0 else 1.0
