"""Rules about LLMs whose output head is their input embedding: one tensor that is trained in one place only."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.arch import config_files, families
from vlmrun.checks.table import Rule
from vlmrun.config.schema import MergeStage, RunConfig, TrainStage
from vlmrun.errors import Problem, VlmrunError

_ENDS = ("embed_tokens", "wte")


def _is_tied(run: RunConfig) -> bool:
    """As the LLM's config.json says; False where it is not here or of a family that is not known."""
    if not config_files.is_told(run.model.llm):
        return False
    try:
        llm = families.llm(config_files.config_of(run.model.llm))
    except (VlmrunError, LookupError, TypeError, ValueError):  # a problem of its own
        return False
    return llm is not None and llm.tied


def _rows(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.tune.llm == "new_tokens" and _is_tied(run):
        yield Problem(
            "this LLM's output head is its input embedding: new rows cannot be trained alone",
            f"{where}.tune.llm",
            f"{where}.tune.llm=full, or an LLM whose head is a tensor of its own",
        )


def _merged(stage: MergeStage, run: RunConfig, where: str) -> Iterator[Problem]:
    for name in (stage.init_from, *stage.adapters):
        trained = run.stage.get(name)
        if not isinstance(trained, TrainStage) or trained.lora is None:
            continue
        ends = [module for module in trained.lora.modules_to_save if module.rpartition(".")[2] in _ENDS]
        if ends and _is_tied(run):
            yield Problem(
                f"{ends[0]} is this LLM's output head too, and an adapter changes it as one of the two only: {name} "
                "can be trained, but not merged",
                f"stage.{name}.lora.modules_to_save",
                f"'stage.{name}.lora.modules_to_save=[]', or an LLM whose head is a tensor of its own",
            )


RULES = (
    Rule("tied-rows", "Rows of new tokens are trained alone only where the output head has weights of its own.",
         ("stage.*.tune.llm", "model.llm"), _rows, of=(TrainStage,), here=True),
    Rule("tied-merge", "An adapter that is merged does not train an embedding that is the output head as well.",
         ("stage.*.init_from", "stage.*.adapters", "model.llm"), _merged, of=(MergeStage,), here=True),
)  # fmt: skip
