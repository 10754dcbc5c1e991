"""What cannot be done with weights that are quantized in their folder, found before any is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.arch import config_files
from vlmrun.checks.table import Rule
from vlmrun.config import paths
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import CheckpointError, Problem
from vlmrun.hardware import packages


def _llm(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    found = _held(run, "llm") if stage.init_from is None else None
    if found is None:
        return
    method = ", ".join(f"{key}: {str(value).lower()}" for key, value in found.items())
    if stage.tune.llm != "qlora":
        yield Problem(
            f"the LLM's weights are quantized ({method}): only adapters can be trained on them",
            f"{where}.tune.llm",
            f"{where}.tune.llm=qlora, or the folder of the full-precision model in model.llm.path",
        )
    elif stage.quant is not None and stage.quant.model_dump() != found:
        yield Problem("the LLM's weights are quantized otherwise", f"{where}.quant", f"'{where}.quant={{{method}}}'")


def _tower(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.init_from is not None or _held(run, "tower") is None:
        return
    yield from packages.bitsandbytes("model.tower.path")
    if stage.tune.sees:
        yield Problem(
            "the tower's weights are quantized: a gradient cannot move them",
            f"{where}.tune.tower",
            f"{where}.tune.tower=freeze, or the folder of the full-precision tower in model.tower.path",
        )


def _held(run: RunConfig, part: str) -> dict[str, object] | None:
    target = getattr(run.model, part)
    if not config_files.is_told(target):
        return None
    try:
        return paths.packed(config_files.config_of(target))
    except CheckpointError:  # a folder that is not there is reported where the part is looked at
        return None


RULES = (
    Rule("quantized-llm", "Weights of an LLM that are quantized on disk are tuned by QLoRA, with the same bits.",
         ("model.llm.path", "stage.*.tune.llm", "stage.*.quant"), _llm, of=(TrainStage,), here=True),
    Rule("quantized-tower", "Weights of a tower that are quantized on disk are not trained.",
         ("model.tower.path", "stage.*.tune.tower"), _tower, of=(TrainStage,), here=True),
)  # fmt: skip
