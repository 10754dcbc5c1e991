"""Stage kind `merge`: an adapter folded into its LLM."""

from __future__ import annotations

import os
from pathlib import Path

from vlmrun import logs
from vlmrun.checkpoints.merge import merge_lora
from vlmrun.config.job import StageJob
from vlmrun.config.schema import MergeStage
from vlmrun.stages import Result

log = logs.get(__name__)


def execute(job: StageJob) -> Result | None:
    """Merges on rank 0; the others have nothing to do."""
    stage = job.stage
    assert isinstance(stage, MergeStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    source = Path(job.parents[stage.init_from])
    summary = merge_lora(source, job.path / "weights", dtype=stage.dtype)
    log.info("merged %d of %d tensors from %s", summary["merged"], summary["tensors"], source)
    if "base" in summary:
        log.info("merged into what the adapter was trained on: %s", summary["base"])
    return Result(summary=summary, roots=("weights",))
