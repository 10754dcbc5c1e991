"""Rules of stages, and of commands, that convert a model."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.checks.table import Rule
from vlmrun.config.schema import ConvertStage
from vlmrun.errors import Problem


def _convert(stage: ConvertStage, where: str) -> Iterator[Problem]:
    if stage.to == "delta" and stage.base_model is None:
        yield Problem("a delta is a difference from something", f"{where}.base_model", "the LLM that it is taken from")
    if stage.tp != 1 and stage.to != "megatron":
        yield Problem(f"tp is of megatron, but to is {stage.to}", f"{where}.tp", f"{where}.tp=1")
    if stage.skip and stage.to not in ("bnb4", "bnb8"):
        yield Problem(f"skip is of bnb4 and bnb8, but to is {stage.to}", f"{where}.skip", f"{where}.skip=[]")


RULES = (
    Rule("convert", "Options of a format are given for that format, and a delta has a base model.",
         ("stage.*.to", "stage.*.base_model", "stage.*.tp", "stage.*.skip"), _convert, of=(ConvertStage,), alone=True),
)  # fmt: skip
