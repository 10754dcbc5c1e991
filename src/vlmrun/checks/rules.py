"""The one table of rules, asked before a weight is loaded. `docs/reference/rules.md` lists them."""

from __future__ import annotations

from collections.abc import Sequence

from vlmrun.checks import (
    benchmarks,
    caches,
    converting,
    data,
    engines,
    families,
    hardware,
    llm,
    merging,
    offload,
    optimizers,
    quantized,
    records,
    run,
    schedules,
    shards,
    sweeps,
    table,
    tied,
    tracking,
    training,
    tuning,
    values,
    vision,
)
from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, StageNode
from vlmrun.errors import Problem

RULES: tuple[Rule, ...] = (
    *run.RULES,
    *families.RULES,
    *llm.RULES,
    *tied.RULES,
    *data.RULES,
    *records.RULES,
    *shards.RULES,
    *benchmarks.RULES,
    *values.RULES,
    *tuning.RULES,
    *training.RULES,
    *schedules.RULES,
    *offload.RULES,
    *optimizers.RULES,
    *engines.RULES,
    *merging.RULES,
    *converting.RULES,
    *hardware.RULES,
    *vision.RULES,
    *caches.RULES,
    *quantized.RULES,
    *tracking.RULES,
)


def check(config: RunConfig, *, here: bool = True) -> list[Problem]:
    """All problems of a run.

    Args:
        here: also those that depend on what is on this machine: files of models and data, packages, drives.
    """
    return table.problems(RULES, config, here=here)


def check_records(config: RunConfig) -> list[Problem]:
    """What is wrong with the records of a run, as far as its annotation files are read before it starts."""
    return table.problems(records.CONTENT, config)


def check_stage(stage: StageNode, where: str) -> list[Problem]:
    """All problems of a stage that a command is given without a run; `where` is the command's name."""
    return table.of_stage(RULES, stage, where)


def check_overrides(hydras: Sequence[str], *, multirun: bool) -> list[Problem]:
    """All problems of a command's overrides that concern Hydra itself."""
    return [problem for rule in sweeps.RULES for problem in rule.find(hydras, multirun=multirun)]
