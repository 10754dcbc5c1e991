"""What a rule is, and how a table of rules is applied to a run or to one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.config.schema import RunConfig, StageNode
from vlmrun.errors import Problem


@dataclass(frozen=True)
class Rule:
    """Something a run must keep.

    Attributes:
        name: what other rules and docs/reference/rules.md call it.
        requires: what must hold, in one sentence.
        reads: the keys it looks at; `stage.*` is any stage.
        find: yields what breaks it. It is given the run; with `of`, a stage, the run and the stage's place; and when it
            is `alone`, the stage and its place.
        of: the stages it is about; none: the run.
        alone: it looks at nothing but the stage, so it holds for a command that has no run as well.
        here: it depends on what is on this machine: files of models and data, packages, drives.
        yields_to: stronger rules. Where one of them has found a problem, this one is silent about the same place.
    """

    name: str
    requires: str
    reads: tuple[str, ...]
    find: Callable[..., Iterable[Problem]]
    of: tuple[type[StageNode], ...] = ()
    alone: bool = False
    here: bool = False
    yields_to: tuple[str, ...] = ()


def problems(rules: Sequence[Rule], run: RunConfig, *, here: bool = True) -> list[Problem]:
    """Everything that breaks the rules, but for stages that `only` leaves out.

    Args:
        here: also ask the rules that depend on this machine.
    """
    found = ((rule, problem) for rule in rules if here or not rule.here for problem in _of_run(rule, run))
    return [problem for problem in _strongest(found) if not _left_out(problem.where, run)]


def of_stage(rules: Sequence[Rule], stage: StageNode, where: str) -> list[Problem]:
    """What is wrong with a stage, whatever run it is in.

    Args:
        where: its place, such as `stage.lora`, or the name of a command.
    """
    asked = (rule for rule in rules if rule.alone and isinstance(stage, rule.of))
    return _strongest((rule, problem) for rule in asked for problem in rule.find(stage, where))


def _of_run(rule: Rule, run: RunConfig) -> Iterator[Problem]:
    """What a rule finds; a path that the system refuses, such as one that is too long or a loop, is a problem too."""
    try:
        yield from _found_by(rule, run)
    except OSError as error:
        what = f"{error.filename or 'a path'}: {error.strerror or error}"
        yield Problem(what, ", ".join(rule.reads[:2]), "another path: the system does not open this one")


def _found_by(rule: Rule, run: RunConfig) -> Iterator[Problem]:
    if not rule.of:
        yield from rule.find(run)
        return
    for name, stage in run.stage.items():
        if isinstance(stage, rule.of) and not (run.only and name not in run.only):
            where = f"stage.{name}"
            asked: tuple[Any, ...] = (stage, where) if rule.alone else (stage, run, where)
            yield from rule.find(*asked)


def _strongest(found: Iterable[tuple[Rule, Problem]]) -> list[Problem]:
    """Each problem once, without those of rules that yield to another one at the same place."""
    listed = list(found)
    places = {(rule.name, problem.where) for rule, problem in listed}
    kept = (
        problem
        for rule, problem in listed
        if not any((stronger, problem.where) in places for stronger in rule.yields_to)
    )
    return list(dict.fromkeys(kept))


def _left_out(where: str, run: RunConfig) -> bool:
    """Whether a place belongs to a stage that `only` leaves out."""
    parts = where.split(".")
    return bool(run.only) and parts[0] == "stage" and parts[1] in run.stage and parts[1] not in run.only
