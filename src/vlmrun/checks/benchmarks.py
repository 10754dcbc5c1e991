"""Rules of benchmarks: what their files are, and which ways of generating answers go together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.errors import Problem

_CHOICES = ("choices", "mmbench", "rounds", "mmmu")  # prompts whose options are known by letter


def check(data: BenchmarkConfig, where: str, *, needs_files: bool) -> Iterator[Problem]:
    """Every broken rule of one benchmark.

    Args:
        needs_files: whether a stage that runs reads it.
    """
    yield from _generation(data, f"{where}.generation")
    if needs_files and data.prepare is None and data.gold is not None and not Path(data.gold).expanduser().exists():
        fix = data.about.fetch if data.about is not None else "the set's own file, or null"
        yield Problem(f"no expected answers at {data.gold!r}", f"{where}.gold", fix)


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
