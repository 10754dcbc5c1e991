"""Rules of benchmarks: what their files are, and which ways of generating answers go together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmrun import build, signature
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import BenchmarkConfig, RunConfig, TrainStage
from vlmrun.errors import Problem, suggest

_PLAIN = ("loss", "exact_match")  # what evaluations on other data give
_CHOICES = ("choices", "mmbench", "rounds", "mmmu")  # prompts whose options are known by letter


def _values(run: RunConfig) -> Iterator[Problem]:
    for name, data in run.data.items():
        if isinstance(data, BenchmarkConfig):
            yield from _generation(data, f"data.{name}.generation")


def _metric(run: RunConfig) -> Iterator[Problem]:
    """One's own, a dotted path; other names are in the schema. Nothing is imported."""
    for name, data in run.data.items():
        own, where = getattr(data, "metric", None), f"data.{name}.metric"
        if own is None or "." not in own:
            continue
        if not build.is_allowed(own):
            allowed = ", ".join(build.allowed_prefixes())
            fix = f"allowed packages: {allowed}; allow one of your own with VLMRUN_ALLOW=its_name"
            yield Problem(f"metric {own!r} is not allowed", where, fix)
        elif signature.module_file(own) is None:
            fix = "check its name; its folder must be on PYTHONPATH"
            yield Problem(f"no module {own!r}", where, fix)


def _gold(run: RunConfig) -> Iterator[Problem]:
    active = (stage for name, stage in run.stage.items() if not run.only or name in run.only)
    for name in dict.fromkeys(source for stage in active for source in derived.sources(stage)):
        data = run.data.get(name)
        if not isinstance(data, BenchmarkConfig) or data.gold is None or data.prepare is not None:
            continue
        if not Path(data.gold).expanduser().exists():
            fix = data.about.fetch if data.about is not None else "the set's own file, or null"
            yield Problem(f"no expected answers at {data.gold!r}", f"data.{name}.gold", fix)


def _generation(data: BenchmarkConfig, where: str) -> Iterator[Problem]:
    values = data.generation
    drawn = values.temperature > 0
    if values.answers > 1 and not drawn:
        yield Problem(
            f"{values.answers} greedy answers to a question are all the same",
            f"{where}.answers",
            f"{where}.temperature=0.7, or {where}.answers=1",
        )
    if values.top_p is not None and not drawn:
        yield Problem("top_p has no effect at temperature 0", f"{where}.top_p", f"{where}.top_p=null")
    if values.num_beams > 1 and drawn:
        yield Problem("beams are searched, not drawn", f"{where}.num_beams", f"{where}.temperature=0")
    if values.likelihood and (drawn or values.num_beams > 1 or values.second is not None):
        yield Problem(
            "the likelihood of options generates nothing",
            f"{where}.likelihood",
            f"temperature=0, num_beams=1 and second=null in {where}",
        )
    if values.likelihood and data.prompt not in _CHOICES:
        yield Problem(
            f"prompt {data.prompt} has no options whose likelihood could be compared",
            f"{where}.likelihood",
            f"{where}.likelihood=false; prompts with options: {', '.join(_CHOICES)}",
        )


def _meanwhile(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """Benchmarks that a training is asked: who chooses by one needs it, and answers are greedy there."""
    held_out = stage.eval
    if held_out is None:
        return
    sets = {name: data for name in held_out.data if isinstance(data := run.data.get(name), BenchmarkConfig)}
    for name, data in sets.items():
        how = data.generation
        if name in _PLAIN:
            yield Problem(
                f"evaluations call the number of other held-out data {name}, and a benchmark has the same name",
                f"{where}.eval.data",
                f"another name under data, for instance {name}_set",
            )
        if data.metric is None:
            yield Problem(
                f"{name} is scored by its server or by a judge, not during training",
                f"{where}.eval.data",
                "name sets with a metric",
            )
        elif how.temperature > 0 or how.num_beams > 1 or how.likelihood or how.second is not None:
            yield Problem(
                f"{name} is asked during training, where answers are greedy and in one pass",
                f"data.{name}.generation",
                "temperature=0, num_beams=1, likelihood=false and second=null, or ask it in an evaluate stage",
            )
    only_sets = len(sets) == len(held_out.data)
    by = stage.keep_best or "loss"
    chosen = stage.keep_best is not None or held_out.patience is not None
    if chosen and by not in sets and (by not in _PLAIN or only_sets):
        known = [*sets, *(() if only_sets else _PLAIN)]
        yield Problem(f"evaluations give no {by} to choose by", f"{where}.keep_best", suggest(by, known, noun="scores"))
    if only_sets and held_out.generate:
        yield Problem(
            "generate is of held-out data that are no benchmarks, and there are none",
            f"{where}.eval.generate",
            f"{where}.eval.generate=0: every question of a benchmark is answered",
        )


RULES = (
    Rule("generation", "The values by which a benchmark's answers are generated all have an effect together.",
         ("data.*.generation", "data.*.prompt"), _values),
    Rule("metric", "A benchmark's metric has a known name, or is a module of an allowed package.",
         ("data.*.metric",), _metric, here=True),
    Rule("expected answers", "The expected answers of benchmarks that are read are there.",
         ("data.*.gold",), _gold, here=True),
    Rule("benchmarks during training", "A training is asked benchmarks greedily, and chooses by a score they give.",
         ("stage.*.eval", "stage.*.keep_best", "data.*.generation"), _meanwhile, of=(TrainStage,)),
)  # fmt: skip
