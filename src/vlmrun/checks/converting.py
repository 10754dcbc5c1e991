"""Rules of stages that convert a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmrun.config.schema import ConvertStage
from vlmrun.errors import Problem


def check(stage: Any, where: str) -> Iterator[Problem]:
    """What is wrong with one stage; nothing, of another kind."""
    if not isinstance(stage, ConvertStage):
        return
    if stage.to == "delta" and stage.base_model is None:
        yield Problem("a delta is a difference from something", f"{where}.base_model", "the LLM that it is taken from")
    if stage.tp != 1 and stage.to != "megatron":
        yield Problem(f"tp is of megatron, but to is {stage.to}", f"{where}.tp", f"{where}.tp=1")
    if stage.skip and stage.to not in ("bnb4", "bnb8"):
        yield Problem(f"skip is of bnb4 and bnb8, but to is {stage.to}", f"{where}.skip", f"{where}.skip=[]")
