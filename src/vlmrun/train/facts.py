"""What a checkpoint and the run that resumes from it must share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.train import audit, dist
from vlmrun.train.audit import PartCount
from vlmrun.train.engine.base import Engine
from vlmrun.train.samples import Samples


def of(
    engine: Engine, job: StageJob, stage: TrainStage, samples: Samples, counts: Sequence[PartCount]
) -> dict[str, Any]:
    """The facts of a run. A collective."""
    frozen = [found for found in prints(engine, trained=False) if found is not None]
    return {
        "engine": engine.name,
        "ranks": dist.world(),
        "precision": job.hardware.precision,
        "steps": samples.schedule.steps,
        # With on_error: skip, records whose images came or went would shift the order of all samples.
        "samples": len(samples.dataset),
        "trainable": {row.part: row.n_trainable for row in counts},
        # Frozen weights are not in a checkpoint: they must be the same again.
        "frozen": _sum(frozen, stage),
    }


def prints(engine: Engine, *, trained: bool) -> list[tuple[int, int] | None]:
    """Fingerprints of what is trained, or of what is frozen, or of this rank's share of it."""
    tensors = (engine.finest(p) for p in engine.vlm.parameters() if p.requires_grad == trained)
    return [None if tensor is None else audit.fingerprint(tensor) for tensor in tensors]


def _sum(found: Sequence[tuple[int, int]], stage: TrainStage) -> list[str]:
    """Fingerprints added up, that of bits and that of places; of shards only that of bits, however they are cut."""
    bits, places = (sum(numbers) % 2**64 for numbers in zip(*found, strict=True)) if found else (0, 0)
    if stage.engine == "fsdp" or (stage.engine == "deepspeed" and stage.zero == 3):
        return [str(sum(dist.gather_objects(bits)) % 2**64)]
    first: list[str] = dist.broadcast_object([str(bits), str(places)])
    return first
