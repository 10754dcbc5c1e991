"""What a family of LLMs cannot do, found before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmrun.arch import causal_lms, config_files, families
from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import CheckpointError, Problem, closest

LOADER = "vlmrun.model.llm.load"


def _config(run: RunConfig) -> dict[str, Any]:
    """The LLM's config.json; empty where another rule says why it cannot be read, or another loader reads it."""
    if run.model.llm.target != LOADER or not config_files.is_told(run.model.llm):
        return {}
    try:
        return config_files.config_of(run.model.llm)
    except CheckpointError:
        return {}


def _known(run: RunConfig) -> Iterator[Problem]:
    config, where = _config(run), f"model.llm.{config_files.told_by(run.model.llm)}"
    name = config.get("model_type")
    if not isinstance(name, str):
        return
    if "vision_config" in config:
        yield Problem(
            f"the folder holds a whole VLM ({name}), not a language model alone",
            where,
            "take the language model out of it: vlmrun convert FOLDER OUT --to hf",
        )
        return
    row, known = families.find(name), causal_lms.names()
    if name not in families.FAMILIES and known and name not in known:
        yield Problem(
            f"the installed transformers has no causal language model {name!r}",
            where,
            f"{_near(name)}a newer transformers, or a loader of your own (docs/guides/own-parts.md)",
        )
    elif row.refuse is not None and (why := row.refuse(config)) is not None:
        yield Problem(f"{name} cannot be a part of a VLM: {why}", where, "another member of the family, or another LLM")


def _near(name: str) -> str:
    """The nearest family that can be loaded, as the beginning of a fix."""
    found = closest(name, sorted({*families.FAMILIES, *causal_lms.names()}))
    return f"did you mean {found!r}? else " if found else ""


def _experts(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    name = str(_config(run).get("model_type") or "")
    if not families.find(name).experts or stage.tune.llm not in ("full", "qlora"):
        return
    why = {
        "full": "training them whole needs a loss that balances them, which is not built",
        "qlora": "they are no linear layers, and would stay in full precision",
    }
    yield Problem(f"{name} has experts: {why[stage.tune.llm]}", f"{where}.tune.llm", f"{where}.tune.llm=lora")


RULES = (
    Rule("llm-family", "The LLM is of a family that transformers knows, alone in its folder, and reads embeddings.",
         ("model.llm",), _known, here=True),
    Rule("experts", "An LLM of experts is frozen or trained through LoRA.",
         ("model.llm", "stage.*.tune.llm"), _experts, of=(TrainStage,), here=True),
)  # fmt: skip
