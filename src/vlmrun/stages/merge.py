"""Stage kind `merge`: adapters folded into their LLM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vlmrun import logs
from vlmrun.config.job import StageJob
from vlmrun.config.schema import MergeStage
from vlmrun.eval.progress import progress
from vlmrun.merging import merge
from vlmrun.names import WEIGHTS
from vlmrun.outcome import Result

log = logs.get(__name__)


def execute(job: StageJob) -> Result | None:
    """Merges on rank 0; the others have nothing to do."""
    assert isinstance(job.stage, MergeStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    return make(job.stage, job.parents, job.path)


def make(stage: MergeStage, parents: Mapping[str, str], folder: Path) -> Result:
    """Writes `folder/weights`; `parents` says where the stage's references are."""
    sources = [Path(parents[name]) for name in (stage.init_from, *stage.adapters)]
    with progress("merging", "tensors") as report:
        summary = merge.merge(stage, sources, folder / WEIGHTS, report=lambda done, total, _: report(done, total))
    log.info("merged %d of %d tensors from %s", summary["merged"], summary["tensors"], ", ".join(map(str, sources)))
    if "base" in summary:
        log.info("merged into: %s", summary["base"])
    return Result(summary=summary, roots=(WEIGHTS,))


def check(stage: MergeStage, parents: Mapping[str, str]) -> str:
    """Proves, without writing, that a merge would lose nothing; what was compared, in words."""
    plan = merge.prepare(stage, [Path(parents[name]) for name in (stage.init_from, *stage.adapters)])
    names = plan.reader.names()
    touched = sum(any(adapter.touches(name) for adapter in plan.adapters) for name in names)
    return f"{len(plan.adapters)} adapter(s) change {touched} of the LLM's {len(names)} tensors, and all of theirs fit"
