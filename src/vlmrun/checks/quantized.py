"""What cannot be done with weights that lie in few bits in their folder, found before any is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.arch import config_files
from vlmrun.config import paths
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.hardware import packages


def check(run: RunConfig) -> Iterator[Problem]:
    """Every train stage that begins with such parts."""
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and stage.init_from is None:
            yield from _llm(run, stage, f"stage.{name}")
            yield from _tower(run, stage, f"stage.{name}")


def _llm(run: RunConfig, stage: TrainStage, where: str) -> Iterator[Problem]:
    found = _held(run, "llm")
    if found is None:
        return
    told = ", ".join(f"{key}: {str(value).lower()}" for key, value in found.items())
    if stage.tune.llm != "qlora":
        yield Problem(
            f"the LLM's weights lie in few bits ({told}): only adapters can be trained on them",
            f"{where}.tune.llm",
            f"{where}.tune.llm=qlora, or the folder of the full-precision model in model.llm.path",
        )
    elif stage.quant is not None and stage.quant.model_dump() != found:
        yield Problem("the LLM's weights lie in other few bits", f"{where}.quant", f"'{where}.quant={{{told}}}'")


def _tower(run: RunConfig, stage: TrainStage, where: str) -> Iterator[Problem]:
    if _held(run, "tower") is None:
        return
    yield from packages.bitsandbytes("model.tower.path")
    if stage.tune.tower == "full":
        yield Problem(
            "the tower's weights lie in few bits: a gradient cannot move them",
            f"{where}.tune.tower",
            f"{where}.tune.tower=freeze, or the folder of the full-precision tower in model.tower.path",
        )


def _held(run: RunConfig, part: str) -> dict[str, object] | None:
    target = getattr(run.model, part)
    if not config_files.is_told(target):
        return None
    try:
        return paths.packed(config_files.config_of(target))
    except CheckpointError:  # a folder that is not there is told where the part is looked at
        return None
