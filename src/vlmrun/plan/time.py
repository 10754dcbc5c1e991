"""Steps, tokens, floating-point operations, hours and cost of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmrun.arch.linears import Linear
from vlmrun.arch.sizes import Shapes, Tower
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, Packing, TrainStage
from vlmrun.hardware import gpus
from vlmrun.plan.lengths import Samples

# Share of the peak that all operations, recomputed ones included, reach. LLaVA-1.5 7B took about 3.5 hours for its
# first stage and 10 for its second on 8 A100 (README of haotian-liu/LLaVA@c121f04); with this plan's operations and the
# lengths it assumes that is 0.44 and 0.31. Not measured here.
MFU = 0.35
# Dollars per GPU and hour: an assumption for the cost column, about the price of a rented A100 80 GB. Give your own.
PRICE = 2.0


@dataclass(frozen=True)
class Flops:
    """Operations of one sample.

    Attributes:
        recomputed: the forward pass again under gradient checkpointing.
        repeated: what ranks that share a sample compute each for itself, beyond the first.
    """

    forward: float
    backward: float
    recomputed: float
    repeated: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.recomputed + self.repeated


@dataclass(frozen=True)
class Duration:
    """A stage's work.

    Attributes:
        held_out: operations of evaluation during training, included in `flops`; None: not known how many samples.

    Units:
        flops: of the whole stage, on all GPUs.
    """

    steps: int
    samples: int
    tokens: int
    image_tokens: int
    text_tokens: int
    flops: float
    held_out: float | None
    per_sample: Flops
    hours: float
    gpu_hours: float
    cost: float


def _product(linear: Linear, rows: float) -> float:
    return 2.0 * linear.n_in * linear.n_out * rows


def per_sample(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, samples: Samples) -> Flops:
    """Of a sample of mean length.

    A product forward is one unit; its gradient for what comes in is another, wherever something in front of it learns;
    that for its weight is a third, only where the weight learns. Attention counts its two products over the whole
    square, as is usual where utilisation is stated: under packing the row's, but where attention goes block by block.
    """
    llm, tune, rows = shapes.llm, stage.tune, samples.mean
    blocks = sum(_product(linear, rows) for block in llm.of_blocks for linear in block)
    blocks += llm.layers * 2.0 * llm.experts * rows
    wide = stage.packing.length if stage.packing and hardware.attention in ("eager", "sdpa") else rows
    scores = llm.layers * 4.0 * rows * wide * llm.heads * llm.head_dim
    head = 2.0 * llm.hidden * llm.vocab * min(samples.text, rows)
    trained = tune.llm == "full"
    adapters = 0.0
    if tune.adapters and stage.lora is not None:
        adapters = 2.0 * llm.n_adapter(stage.lora, tune.llm_last) * rows
    forward = blocks + scores + head + adapters
    backward = (blocks + head) * (1 + trained) + 2 * scores + 2 * adapters
    recomputed = blocks + scores + adapters if stage.gradient_checkpointing else 0.0
    seen, learnt, again = _vision(shapes, stage, samples)
    alone = (derived.replicas(hardware) - 1) * (seen + learnt + again)
    alone += (hardware.tensor_parallel - 1) * head * (2 + trained)
    return Flops(forward + seen, backward + learnt, recomputed + again, alone)


def _vision(shapes: Shapes, stage: TrainStage, samples: Samples) -> tuple[float, float, float]:
    """Of tower and connector: forward, backward, recomputed."""
    tower, sees = shapes.tower, stage.tune.sees
    eye = samples.squares * tower_flops(tower)
    between = samples.squares * sum(_product(linear, n) for linear, n in shapes.connector.linears)
    learns = (1 + sees) if stage.tune.connector == "full" or sees else 0
    return eye + between, 2 * eye * sees + learns * between, eye * (sees and bool(stage.gradient_checkpointing))


def tower_flops(tower: Tower) -> float:
    """Of one image or tile, at all scales."""
    rows = tower.tokens
    products = 2.0 * rows * (4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate)
    return tower.squares * tower.blocks * (products + 4.0 * rows * rows * tower.hidden)


# Share of a row's positions that hold a token, by how many samples of mean length it is long: as `make bench-packing`
# found for rows of 2048, 4096 and 8192 and lengths like LLaVA's.
_FILL = {
    2.5: {"even_fit": 0.841, "best_fit": 0.861, "first_fit": 0.83, "in_order": 0.772},
    5.0: {"even_fit": 0.997, "best_fit": 0.95, "first_fit": 0.945, "in_order": 0.894},
    10.0: {"even_fit": 0.997, "best_fit": 0.979, "first_fit": 0.974, "in_order": 0.946},
}


def fill(packing: Packing, samples: Samples) -> float:
    """Share of a row that holds tokens, as in the nearest kind of row that was tried."""
    long = packing.length / samples.mean
    return _FILL[min(_FILL, key=lambda known: abs(math.log(known / long)))][packing.method]


def per_row(packing: Packing | None, samples: Samples) -> float:
    """Samples that share a row."""
    return 1.0 if packing is None else max(1.0, packing.length * fill(packing, samples) / samples.mean)


def steps(stage: TrainStage, samples: Samples) -> int | None:
    """Updates, as `data.sampler.Schedule` counts them; None: it is not known how many samples there are."""
    if samples.n is None or stage.epochs is None:
        return stage.max_steps
    n_rows = int(int(samples.n * stage.epochs) / per_row(stage.packing, samples))
    available = n_rows // stage.global_batch
    return available if stage.max_steps is None else min(available, stage.max_steps)


@dataclass(frozen=True)
class Rates:
    """What time and cost are computed with."""

    mfu: float
    price: float


def duration(
    shapes: Shapes,
    stage: TrainStage,
    hardware: HardwareConfig,
    samples: Samples,
    held_out: Samples | None,
    rates: Rates,
) -> Duration | None:
    """How long a stage takes and what it costs; None as `steps`.

    Args:
        held_out: what it is evaluated on meanwhile; generated answers are not counted.
    """
    n_steps = steps(stage, samples)
    if n_steps is None:
        return None
    used = round(n_steps * stage.global_batch * per_row(stage.packing, samples))
    one = per_sample(shapes, stage, hardware, samples)
    tried = _held_out(shapes, stage, hardware, held_out, n_steps)
    flops = used * one.total + (tried or 0.0)
    gpu = gpus.find(hardware.gpu)
    ranks = derived.ranks(hardware)
    peak = gpu.peak_flops(hardware.precision, tf32=hardware.tf32)
    hours = flops / (ranks * peak * rates.mfu) / 3600 if peak else float("inf")
    return Duration(
        steps=n_steps,
        samples=used,
        tokens=round(used * samples.mean),
        image_tokens=round(used * samples.image_tokens),
        text_tokens=round(used * samples.text),
        flops=flops,
        held_out=tried,
        per_sample=one,
        hours=hours,
        gpu_hours=hours * ranks,
        cost=0.0 if gpu.is_cpu else hours * ranks * rates.price,
    )


def _held_out(
    shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, samples: Samples | None, n_steps: int
) -> float | None:
    """Forward passes every N updates, and after the last."""
    if stage.eval is None or samples is None:
        return 0.0
    counts = [n for n in (stage.eval.max_samples, samples.n) if n is not None]
    if not counts:
        return None
    alone = stage.model_copy(update={"packing": None})
    forward = per_sample(shapes, alone, hardware, samples).forward
    epochs = n_steps * stage.global_batch / samples.n if samples.n else 1.0
    turns = derived.times(stage.eval.steps, n_steps, stage.epochs or epochs) + stage.eval.at_start
    return turns * min(counts) * forward
