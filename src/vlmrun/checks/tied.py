"""A rule about LLMs whose output head is their input embedding: rows of new tokens cannot train alone there."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.arch import config_files, families
from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import Problem, VlmrunError


def _is_tied(run: RunConfig) -> bool:
    """As the LLM's config.json says; False where it is not here or cannot be read."""
    if not config_files.is_told(run.model.llm):
        return False
    try:
        return families.is_tied(config_files.config_of(run.model.llm))
    except (VlmrunError, LookupError, TypeError, ValueError, AttributeError):  # a problem of its own
        return False


def _rows(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.tune.llm == "new_tokens" and _is_tied(run):
        yield Problem(
            "this LLM's output head is its input embedding: new rows cannot be trained alone",
            f"{where}.tune.llm",
            f"{where}.tune.llm=full, or an LLM whose head is a tensor of its own",
        )


RULES = (
    Rule("tied-rows", "Rows of new tokens are trained alone only where the output head has weights of its own.",
         ("stage.*.tune.llm", "model.llm"), _rows, of=(TrainStage,), here=True),
)  # fmt: skip
