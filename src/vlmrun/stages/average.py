"""Stage kind `average`: the weighted mean of finished models."""

from __future__ import annotations

import os
from pathlib import Path

from vlmrun import logs
from vlmrun.checkpoints.average import average
from vlmrun.config.job import StageJob
from vlmrun.config.schema import AverageStage
from vlmrun.stages import Result

log = logs.get(__name__)


def execute(job: StageJob) -> Result | None:
    """Averages on rank 0; the others have nothing to do."""
    stage = job.stage
    assert isinstance(stage, AverageStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    sources = [Path(job.parents[name]) for name in stage.models]
    summary = average(sources, stage.weights, job.path / "weights", dtype=stage.dtype)
    log.info("averaged %d of %d tensors of %d models", summary["averaged"], summary["tensors"], summary["models"])
    return Result(summary=summary, roots=("weights",))
