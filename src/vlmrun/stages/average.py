"""Stage kind `average`: one model made of several finished ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vlmrun import logs
from vlmrun.config.job import StageJob
from vlmrun.config.schema import AverageStage
from vlmrun.eval.progress import progress
from vlmrun.merging import average
from vlmrun.names import PARTS, WEIGHTS
from vlmrun.outcome import Result

log = logs.get(__name__)


def execute(job: StageJob) -> Result | None:
    """Averages on rank 0; the others have nothing to do."""
    assert isinstance(job.stage, AverageStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    return make(job.stage, job.parents, job.path)


def make(stage: AverageStage, parents: Mapping[str, str], folder: Path) -> Result:
    """Writes `folder/weights`; `parents` says where the stage's references are."""
    sources, base = places(stage, parents)
    with progress("averaging", "tensors") as report:
        summary = average.average(
            stage, sources, folder / WEIGHTS, base=base, report=lambda done, total, _: report(done, total)
        )
    log.info(
        "%s: %d of %d tensors differed in %d models",
        stage.method.name, summary["averaged"], summary["tensors"], summary["models"],
    )  # fmt: skip
    return Result(summary=summary | {"method": stage.method.name}, roots=(WEIGHTS,))


def check(stage: AverageStage, parents: Mapping[str, str]) -> str:
    """Proves, without writing, that an average would lose nothing; what was compared, in words."""
    sources, base = places(stage, parents)
    names = average.prepare(stage, sources, base).names()
    by_part = {part: sum(name.startswith(f"{part}.") for name in names) for part in PARTS}
    counted = ", ".join(f"{part} {count}" for part, count in by_part.items())
    return f"{len(sources)} models with the same {len(names)} tensors ({counted}), configurations and templates"


def places(stage: AverageStage, parents: Mapping[str, str]) -> tuple[list[Path], Path | None]:
    """Folders of the models, in order, and of the base model if there is one."""
    base = Path(parents[stage.base_model]) if stage.base_model else None
    return [Path(parents[name]) for name in stage.models], base
