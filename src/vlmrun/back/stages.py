"""The door to kinds of stages, to merges and averages, and to modules of models that only they tell the sizes of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from vlmrun import build, kinds
from vlmrun.arch.sizes import Shapes
from vlmrun.back.weights import know_checkpoints
from vlmrun.config.job import StageJob
from vlmrun.config.schema import AverageStage, MergeStage, ModelConfig
from vlmrun.outcome import Result


class Stage(Protocol):
    """A module of `stages/`, or of a plugin: the back half of a kind of stage."""

    def execute(self, job: StageJob) -> Result | None:
        """Does the work of one rank; a result on rank 0."""


def stage(job: StageJob) -> Stage:
    """What executes this job's kind of stage, with everything loaded that it needs."""
    if job.parents:  # models that it starts from
        know_checkpoints()
    return cast(Stage, build.module(kinds.of(job.stage).back, f"stage.{job.name}.kind"))


def make(stage: MergeStage | AverageStage, sources: Mapping[str, str], folder: Path) -> Result:
    """Writes `folder/weights` as a merge or an average of models.

    Args:
        sources: the native folder of every reference in `stage`.

    Raises:
        CheckpointError: when a source is damaged or the sources do not fit together.
    """
    from vlmrun.stages import average, merge

    if isinstance(stage, MergeStage):
        return merge.make(stage, sources, folder)
    return average.make(stage, sources, folder)


def compatible(stage: MergeStage | AverageStage, sources: Mapping[str, str]) -> str:
    """Compares the sources of a merge or an average without writing; what was compared, in words.

    Raises:
        CheckpointError: listing what does not fit.
    """
    from vlmrun.stages import average, merge

    return merge.check(stage, sources) if isinstance(stage, MergeStage) else average.check(stage, sources)


def shapes_of(model: ModelConfig, llm: dict[str, Any], tower: dict[str, Any], n_added: int) -> Shapes:
    """Sizes of a model of any family, read off its modules, which are made without weights.

    Args:
        llm, tower: the parts' config.json.
        n_added: tokens added to the vocabulary.
    """
    from vlmrun.plan import meta

    return meta.shapes_of(model, llm, tower, n_added)
