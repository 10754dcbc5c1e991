"""Stage kind `convert`: a model written as another format."""

from __future__ import annotations

import os
from pathlib import Path

from vlmrun import logs, store
from vlmrun.config.job import StageJob
from vlmrun.config.schema import ConvertStage
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.outcome import Result
from vlmrun.weights.reader import DTYPES

log = logs.get(__name__)
MODEL = "model"  # a folder of another format; our own is called weights, and further stages start from it


def execute(job: StageJob) -> Result | None:
    """Converts on rank 0; the others have nothing to do."""
    stage = job.stage
    assert isinstance(stage, ConvertStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    root = "weights" if stage.to == "native" else MODEL
    how = How(
        base=None if stage.base_model is None else Path(job.parents[stage.base_model]),
        tower=None if stage.tower is None else Path(stage.tower),
        template=stage.template,
        dtype=DTYPES.get(stage.dtype),
        tp=stage.tp,
        skip=tuple(stage.skip),
    )
    source = Path(job.parents[stage.init_from])
    summary = convert(source, job.path / root, stage.to, how, came_as=store.came_as(source), prove=stage.prove)
    for note in summary.pop("notes"):
        log.info("%s", note)
    proof = summary.pop("proof", None)
    log.info("%d tensors, from %s to %s", summary["tensors"], summary["from"], summary["to"])
    if proof is not None:
        log.info("plain transformers sees and answers alike; logits are %.2g apart", proof["logits_apart"])
    return Result(summary=summary | (proof or {}), roots=(root,))
