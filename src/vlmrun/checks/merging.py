"""Rules of stages that put finished models together: merge, average, search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from vlmrun import expressions
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import (
    AverageStage,
    MergeStage,
    RunConfig,
    SearchStage,
    TrainStage,
)
from vlmrun.errors import Problem, suggest

_MOST_POINTS = 10_000
_ONCE = "name each once and give it the sum of its weights"


def _average(stage: AverageStage, where: str) -> Iterator[Problem]:
    yield from _models(stage, where)
    if stage.weights is not None and stage.ema is not None:
        yield Problem("both weights and ema are given", f"{where}.ema", f"{where}.weights=null, or {where}.ema=null")
    needed = stage.method.weighted
    if needed and stage.weights is None and stage.ema is None:
        yield Problem("there are no weights", f"{where}.weights", "one per model, such as [0.5, 0.5]")
    if not needed and (stage.weights is not None or stage.ema is not None or stage.rules):
        yield Problem(
            f"{stage.method.name} finds its own weights",
            where,
            f"{where}.weights=null {where}.ema=null {where}.rules=[]",
        )
    elif stage.weights is not None:
        yield from _weights(stage.weights, stage, f"{where}.weights")


def _models(stage: AverageStage | SearchStage, where: str) -> Iterator[Problem]:
    """Models, base, rules and method, which average and search have in common."""
    n = len(stage.models)
    if len(set(stage.models)) != n:
        yield Problem("a model is named twice", f"{where}.models", _ONCE)
    counts = stage.method.from_base
    if counts and stage.base_model is None:
        yield Problem(
            f"{stage.method.name} counts changes from a base model, but there is none",
            f"{where}.base_model",
            "the stage or artifact that the models were trained from",
        )
    if not counts and stage.base_model is not None:
        yield Problem(
            f"{stage.method.name} takes no base model",
            f"{where}.base_model",
            f"{where}.base_model=null, or another method such as ties",
        )
    if stage.base_model in stage.models:
        yield Problem("the base model is one of the models: it changed nothing", f"{where}.base_model", "leave it out")
    if stage.method.n_models not in (None, n):
        wanted = stage.method.n_models
        yield Problem(
            f"{stage.method.name} takes {wanted} models, but there are {n}", f"{where}.models", f"{wanted} models"
        )
    yield from _parameters(stage.method, n, f"{where}.method")
    for number, rule in enumerate(stage.rules):
        what = expressions.fault(rule.tensors)
        if what is not None:
            yield Problem(what, f"{where}.rules[{number}].tensors", "such as '^tower' or 'layers\\.[0-3]\\.'")
        yield from _weights(rule.weights, stage, f"{where}.rules[{number}].weights")


def _weights(weights: Sequence[float], stage: AverageStage | SearchStage, where: str) -> Iterator[Problem]:
    n, total, how = len(stage.models), sum(weights), getattr(stage.method, "sum", "any")
    if len(weights) != n:
        yield Problem(f"{n} models, {len(weights)} weights", where, "one weight per model")
    elif how == "one" and not math.isclose(total, 1.0, abs_tol=1e-6):
        yield Problem(
            f"the weights sum to {total:g}, not 1", where, "for instance [0.5, 0.5]; or method.sum: normalize"
        )
    elif how == "normalize" and abs(total) < 1e-6:
        yield Problem("the weights sum to 0: they cannot be divided by it", where, "for instance [1, 1]")


def _parameters(method: Any, n: int, where: str) -> Iterator[Problem]:
    density = getattr(method, "density", None)
    if isinstance(density, list) and len(density) != n:
        yield Problem(f"{n} models, {len(density)} densities", f"{where}.density", "one for all, or one per model")
    epsilon = getattr(method, "epsilon", None)
    if epsilon is not None:
        for share in density if isinstance(density, list) else [density]:
            if not epsilon < share < 1 - epsilon:
                yield Problem(
                    f"chances would run from {share - epsilon:g} to {share + epsilon:g}",
                    f"{where}.epsilon",
                    "they must lie between 0 and 1: a smaller epsilon",
                )


def _search(stage: SearchStage, where: str) -> Iterator[Problem]:
    yield from _models(stage, where)
    scores = ("accuracy", "accuracy_unseen", *stage.data)
    if stage.score not in scores:
        fix = suggest(stage.score, scores, noun="scores")
        yield Problem(f"no score {stage.score!r}", f"{where}.score", fix)
    if stage.weights is not None and stage.divisions is not None:
        yield Problem("both weights and divisions are given", f"{where}.divisions", f"{where}.divisions=null")
    stock = not stage.method.weighted
    if not stock and not stage.weights and stage.divisions is None:
        yield Problem("there is no weight to try", f"{where}.weights", f"{where}.divisions=10, or a list of weights")
    if stock:
        yield Problem(
            f"{stage.method.name} has nothing to search: it finds its own weights", f"{where}.method", "kind: average"
        )
    for number, weights in enumerate(stage.weights or []):
        yield from _weights(weights, stage, f"{where}.weights[{number}]")
    fields = type(stage.method).model_fields.items()
    known = sorted(name for name, field in fields if "float" in str(field.annotation))
    unknown = [name for name in stage.grid if name not in known]
    for name in unknown:
        yield Problem(
            f"{stage.method.name} has no number {name!r}", f"{where}.grid", suggest(name, known, noun="numbers")
        )
    n_models = len(stage.models)
    n_weights = len(stage.weights or []) or math.comb((stage.divisions or 1) + n_models - 1, n_models - 1)
    n_points = n_weights * math.prod(len(values) for values in stage.grid.values())
    if n_points > _MOST_POINTS:
        what = f"{n_points:,} averages would be made and asked; a search takes {_MOST_POINTS:,} at most"
        yield Problem(what, f"{where}.divisions", "fewer divisions, or a shorter list of weights or of a number")
    if unknown or stock or n_points > _MOST_POINTS:
        return
    try:
        tried = derived.points(stage)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        yield Problem(f"{found['loc'][0]} = {found['input']}: {found['msg'].lower()}", f"{where}.grid", "other values")
        return
    for method in {str(point.method): point.method for point in tried}.values():
        yield from _parameters(method, len(stage.models), f"{where}.grid")


def _merge_parents(stage: MergeStage, run: RunConfig, where: str) -> Iterator[Problem]:
    names = [stage.init_from, *stage.adapters]
    options = [name for name, s in run.stage.items() if isinstance(s, TrainStage) and s.tune.adapters]
    for name in names:
        parent = run.stage.get(name)
        if parent is not None and name not in options:
            yield Problem(
                f"{name!r} has no adapters to merge",
                f"{where}.{'init_from' if name == stage.init_from else 'adapters'}",
                f"name a LoRA stage: {', '.join(options) or 'there is none in this run'}",
            )


def _merge(stage: MergeStage, where: str) -> Iterator[Problem]:
    names = [stage.init_from, *stage.adapters]
    if len(set(names)) != len(names):
        yield Problem("an adapter is named twice", f"{where}.adapters", _ONCE)
    if stage.weights is not None and len(stage.weights) != len(names):
        yield Problem(f"{len(names)} adapters, {len(stage.weights)} weights", f"{where}.weights", "one per adapter")
    if stage.arithmetic == "fp16" and stage.dtype != "fp16":
        yield Problem("sums in fp16 are written as fp16", f"{where}.dtype", f"{where}.dtype=fp16")


RULES = (
    Rule("merge", "Each adapter of a merge is named once and has one weight, and sums in fp16 are written as fp16.",
         ("stage.*.adapters", "stage.*.weights", "stage.*.arithmetic", "stage.*.dtype"), _merge, of=(MergeStage,),
         alone=True),
    Rule("merged-stages", "What is merged was trained through adapters.", ("stage.*.init_from", "stage.*.adapters"),
         _merge_parents, of=(MergeStage,)),
    Rule("average", "Each model of an average is named once and weighted as its method needs, and a base model is "
         "named where the method counts changes from one.",
         ("stage.*.models", "stage.*.weights", "stage.*.ema", "stage.*.rules", "stage.*.method", "stage.*.base_model"),
         _average, of=(AverageStage,), alone=True),
    Rule("search", "A search has weights or numbers of its method to try, and each of them would make an average.",
         ("stage.*.models", "stage.*.weights", "stage.*.divisions", "stage.*.grid", "stage.*.method"), _search,
         of=(SearchStage,), alone=True),
)  # fmt: skip
