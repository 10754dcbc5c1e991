"""The plan of one stage, put together."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun import kinds
from vlmrun.arch.counts import Counts
from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import HardwareConfig, StageNode, TrainStage
from vlmrun.kinds.needs import Needs
from vlmrun.plan import advice, disk, features, memory, time
from vlmrun.plan.activations import Batch
from vlmrun.plan.advice import Suggestion
from vlmrun.plan.counts import counts
from vlmrun.plan.disk import Disk
from vlmrun.plan.features import Features
from vlmrun.plan.lengths import Samples, Source
from vlmrun.plan.memory import Memory
from vlmrun.plan.time import Duration, Rates


@dataclass(frozen=True)
class Read:
    """What a stage reads.

    Attributes:
        held_out: samples it is evaluated on meanwhile; None: it is not.
    """

    sources: tuple[Source, ...]
    samples: Samples
    held_out: Samples | None


@dataclass(frozen=True)
class TrainPlan:
    """A train stage.

    Attributes:
        capacity: bytes of a GPU; None: a CPU's is not known.
        fitting: the largest micro batch that fits.
    """

    name: str
    counts: dict[str, Counts]
    sources: tuple[Source, ...]
    samples: Samples
    batch: Batch
    memory: Memory
    capacity: int | None
    fitting: int | None
    suggestions: tuple[Suggestion, ...]
    duration: Duration | None
    disk: Disk
    features: Features | None  # kept under tower_cache

    @property
    def fits(self) -> bool | None:
        """Whether the stage as asked for fits; None: not known."""
        return None if self.capacity is None else self.memory.total <= self.capacity


@dataclass(frozen=True)
class OtherPlan:
    """A stage that does not train."""

    name: str
    kind: str
    needs: Needs


def batch_of(stage: TrainStage, samples: Samples) -> Batch:
    """The fullest micro batch: every row as long as the longest sample, all its text supervised.

    Packed rows are all of one length, hold as many images as find room, and text beside those of a mean row.
    """
    n = stage.micro_batch
    if stage.packing is not None:
        length = stage.packing.length
        pictured = samples.image_tokens / samples.pictures if samples.pictures else 0.0
        most = max(1, int(length / pictured)) * round(samples.squares / samples.pictures) if pictured else 0
        text = length - round(time.per_row(stage.packing, samples) * samples.image_tokens)
        return Batch(n, length, n * max(1, text), n * max(most, samples.most_squares))
    text = max(1, samples.longest - round(samples.image_tokens))
    return Batch(n, samples.longest, n * text, n * samples.most_squares, padded=n > 1)


def needed(shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, samples: Samples) -> Memory:
    """Memory of a stage at its fullest micro batch."""
    return memory.peak(shapes, stage, hardware, batch_of(stage, samples))


def train(
    name: str,
    shapes: Shapes,
    stage: TrainStage,
    hardware: HardwareConfig,
    read: Read,
    rates: Rates,
) -> TrainPlan:
    """Everything about a train stage."""
    samples = read.samples

    def planned(changed: TrainStage) -> Memory:
        return needed(shapes, changed, hardware, samples)

    work = time.duration(shapes, stage, hardware, samples, read.held_out, rates)
    return TrainPlan(
        name=name,
        counts=counts(shapes, stage),
        sources=read.sources,
        samples=samples,
        batch=batch_of(stage, samples),
        memory=planned(stage),
        capacity=advice.capacity(hardware),
        fitting=advice.largest(stage, hardware, planned),
        suggestions=tuple(advice.suggestions(name, stage, hardware, planned)),
        duration=work,
        disk=disk.train(shapes, stage, hardware, work.steps if work is not None else None),
        features=features.kept(shapes, stage, hardware, samples, work, rates),
    )


def other(name: str, shapes: Shapes, stage: StageNode, hardware: HardwareConfig, length: int) -> OtherPlan:
    """A stage that does not train, as its kind says."""
    return OtherPlan(name, stage.kind, kinds.of(stage).needs(stage, shapes, hardware, length))
