"""Steps, tokens, floating-point operations, hours and cost of a stage."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.hardware import gpus
from vlmrun.plan.lengths import Samples
from vlmrun.plan.shapes import Linear, Shapes

# Share of the peak that all operations, recomputed ones included, reach. LLaVA-1.5 7B took about 3.5 hours for its
# first stage and 10 for its second on 8 A100 (README of haotian-liu/LLaVA@c121f04); with this plan's operations and the
# lengths it assumes that is 0.44 and 0.31. Not measured here.
MFU = 0.35
# Dollars per GPU and hour: an assumption for the cost column, about the price of a rented A100 80 GB. Give your own.
PRICE = 2.0


@dataclass(frozen=True)
class Flops:
    """Operations of one sample: forward, backward, and the forward pass again under gradient checkpointing."""

    forward: float
    backward: float
    recomputed: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Duration:
    """A stage's work.

    Units:
        flops: of the whole stage, on all GPUs.
    """

    steps: int
    samples: int
    tokens: int
    image_tokens: int
    text_tokens: int
    flops: float
    per_sample: Flops
    hours: float
    gpu_hours: float
    cost: float


def _product(linear: Linear, rows: float) -> float:
    return 2.0 * linear.n_in * linear.n_out * rows


def per_sample(shapes: Shapes, stage: TrainStage, samples: Samples) -> Flops:
    """Of a sample of mean length.

    A product forward is one unit; its gradient for what comes in is another, wherever something in front of it learns;
    that for its weight is a third, only where the weight learns. Attention counts its two products over the whole
    square, as is usual where utilisation is stated.
    """
    llm, tune, rows = shapes.llm, stage.tune, samples.mean
    blocks = llm.layers * sum(_product(linear, rows) for linear in llm.linears)
    scores = llm.layers * 4.0 * rows * rows * llm.heads * llm.head_dim
    head = 2.0 * llm.hidden * llm.vocab * min(samples.text, rows)
    trained = tune.llm == "full"
    adapters = 0.0
    if tune.adapters and stage.lora is not None:
        wide = sum(linear.n_in + linear.n_out for linear in llm.adapted(stage.lora))
        adapters = llm.layers * 2.0 * stage.lora.r * wide * rows
    forward = blocks + scores + head + adapters
    backward = (blocks + head) * (1 + trained) + 2 * scores + 2 * adapters
    recomputed = blocks + scores + adapters if stage.gradient_checkpointing else 0.0
    seen, learnt, again = _vision(shapes, stage, samples)
    return Flops(forward + seen, backward + learnt, recomputed + again)


def _vision(shapes: Shapes, stage: TrainStage, samples: Samples) -> tuple[float, float, float]:
    """Of tower and connector: forward, backward, recomputed."""
    tower, sees = shapes.tower, stage.tune.tower == "full"
    rows = tower.tokens
    products = 2.0 * rows * (4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate)
    square = tower.blocks * (products + 4.0 * rows * rows * tower.hidden)
    eye = samples.squares * tower.squares * square
    between = samples.squares * sum(_product(linear, n) for linear, n in shapes.connector.linears)
    learns = (1 + sees) if stage.tune.connector == "full" or sees else 0
    return eye + between, 2 * eye * sees + learns * between, eye * (sees and stage.gradient_checkpointing)


def steps(stage: TrainStage, n_samples: int | None) -> int | None:
    """Updates, as `data.sampler.Schedule` counts them; None: it is not known how many samples there are."""
    if n_samples is None:
        return stage.max_steps
    available = int(n_samples * stage.epochs) // stage.global_batch
    return available if stage.max_steps is None else min(available, stage.max_steps)


def duration(
    shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, samples: Samples, *, mfu: float, price: float
) -> Duration | None:
    """How long a stage takes and what it costs; None as `steps`."""
    n_steps = steps(stage, samples.n)
    if n_steps is None:
        return None
    used = n_steps * stage.global_batch
    one = per_sample(shapes, stage, samples)
    gpu = gpus.find(hardware.gpu)
    ranks = hardware.nodes * hardware.ranks_per_node
    peak = getattr(gpu, f"peak_flops_{hardware.precision}")
    hours = used * one.total / (ranks * peak * mfu) / 3600 if peak else float("inf")
    return Duration(
        steps=n_steps,
        samples=used,
        tokens=round(used * samples.mean),
        image_tokens=round(used * samples.image_tokens),
        text_tokens=round(used * samples.text),
        flops=used * one.total,
        per_sample=one,
        hours=hours,
        gpu_hours=hours * ranks,
        cost=0.0 if gpu.is_cpu else hours * ranks * price,
    )
