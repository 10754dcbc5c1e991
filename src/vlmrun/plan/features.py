"""What features of a frozen tower take on disk, and when keeping them pays (`tower_cache`)."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.hardware import gpus
from vlmrun.kinds import needs
from vlmrun.kinds.needs import FP32
from vlmrun.plan.lengths import Samples
from vlmrun.plan.time import Duration, Rates, tower_flops

DISK_BYTES_PER_SECOND = 2e9  # of one node, read by all its ranks: an assumption, about one NVMe drive


@dataclass(frozen=True)
class Features:
    """The features that a stage keeps.

    Attributes:
        n_bytes: of all images of one epoch.
        flops: of the tower, which a run that finds all of them saves in each epoch.
        saved: operations that this run saves, having to compute them once.
        seconds: of a rank to compute the features of one square; `reading` to read them, while all ranks of a node do.
    """

    n_bytes: int
    flops: float
    saved: float
    seconds: float
    reading: float

    @property
    def pays(self) -> bool:
        """Whether reading is faster than computing."""
        return self.reading < self.seconds


def kept(
    shapes: Shapes, stage: TrainStage, hardware: HardwareConfig, samples: Samples, work: Duration | None, rates: Rates
) -> Features | None:
    """Of a stage with `tower_cache`; None for another, and where it is not known how many samples there are."""
    if stage.tower_cache is None or samples.n is None or work is None:
        return None
    # DeepSpeed's tower has 16-bit weights; under autocast what goes from block to block stays in fp32.
    size = needs.written(1, "keep", hardware) if stage.engine == "deepspeed" else FP32
    square = shapes.tower.patches * shapes.tower.width * size
    n_seen = work.samples * samples.squares
    n_distinct = min(n_seen, samples.n * samples.squares)
    flops = tower_flops(shapes.tower)
    peak = gpus.find(hardware.gpu).peak_flops(hardware.precision, tf32=hardware.tf32)
    return Features(
        n_bytes=round(n_distinct * square),
        flops=n_distinct * flops,
        saved=(n_seen - n_distinct) * flops,
        seconds=flops / (peak * rates.mfu) if peak else float("inf"),
        reading=square * hardware.ranks_per_node / DISK_BYTES_PER_SECOND,
    )
