"""`vlmrun diff A B`: what changed between two runs, stages or artifacts, and what it changed. Written to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmrun.cli.options import new_parser, output_option
from vlmrun.compare import both, sides
from vlmrun.compare.both import Comparison
from vlmrun.compare.records import Changed
from vlmrun.compare.results import Answer, Number, Results
from vlmrun.compare.values import ABSENT, Change
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_EXAMPLES = """\
vlmrun diff lora-f6f00a4c58 lora2-9bdc974ce4       two stages
vlmrun diff eval_merge eval_average --answers 20  and answers that changed
vlmrun diff smoke outputs/sweeps/2026-11-28_10-00-00/2 --json
"""
_ALIKE = ("first", "second")
_MOST_TEXT = 60


def main(arguments: list[str]) -> int:
    """Prints the comparison; 0 whether or not anything differs."""
    parser = new_parser("diff", "What changed between two runs, stages or artifacts, and what came of it.", _EXAMPLES)
    parser.add_argument("first", help="a run's name or folder; a stage's name, key, name-key or folder")
    parser.add_argument("second", help="the same")
    output_option(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable, with every answer that changed")
    parser.add_argument("--answers", type=int, default=5, metavar="N", help="changed answers to list (default: 5)")
    options = parser.parse_args(arguments)
    root = Path(options.output)
    found = both.compare(sides.find(root, options.first), sides.find(root, options.second))
    if options.json:
        json.dump(both.to_json(found), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _print(found, options.answers)
    return 0


def _print(found: Comparison, n_answers: int) -> None:
    for label, side in zip(_ALIKE, (found.first, found.second), strict=True):
        sys.stdout.write(f"{label:6}  {side.kind} {side.reference}  {tables.shown(side.folder)}\n")
    _changes("values that differ", "key", found.values)
    if found.data:
        lines = [[each.name, *(_count(count) for count in each.counts), _records(each)] for each in found.data]
        _table("data that differs", ("data", *_ALIKE, "records"), lines)
    _changes("versions that differ", "version", found.code)
    for label, names in zip(_ALIKE, found.alone, strict=True):
        if names:
            sys.stdout.write(f"\nonly in the {label}: {', '.join(names)}\n")
    for stage in found.stages:
        _stage(stage, n_answers)


def _changes(title: str, heading: str, changes: Sequence[Change]) -> None:
    lines = [[each.key, _text(each.first), _text(each.second)] for each in changes]
    if lines:
        _table(title, (heading, *_ALIKE), lines)
    else:
        sys.stdout.write(f"\n{title}: none\n")


def _stage(found: Results, n_answers: int) -> None:
    if found.same:
        sys.stdout.write(f"\n{found.stage}: the same result, file by file\n")
        return
    apart = {name: each["protocol"] for name, each in found.benchmarks.items() if not each["comparable"]}
    for name, differences in {**({"accuracy": found.protocol} if found.protocol else {}), **apart}.items():
        sys.stdout.write(f"\n{found.stage}, {name}: not comparable, the protocols differ: {'; '.join(differences)}\n")
    lines = [
        [each.name, *_numbers(each), "not comparable" if each.name in apart else _difference(each)]
        for each in found.numbers
    ]
    _table(found.stage, ("number", *_ALIKE, "difference"), lines)
    for line in _verdicts(found):
        sys.stdout.write(f"{line}\n")
    if found.n_asked:
        sys.stdout.write(f"answers that changed: {len(found.answers):,} of {found.n_asked:,}\n")
    if found.answers[:n_answers]:
        lines = [_answer(each) for each in found.answers[:n_answers]]
        _table("", ("question", "text", "expected", *_ALIKE), lines)


def _verdicts(found: Results) -> Iterator[str]:
    if found.paired is not None and not found.protocol:
        bounds = found.paired.interval
        between = f" (95 % {bounds.low:+.1%} .. {bounds.high:+.1%})" if bounds else ""
        yield (
            f"accuracy {found.paired.difference:+.1%}{between}, p = {found.paired.p_value:.3g}: "
            f"{found.paired.better} questions better, {found.paired.worse} worse, of {found.paired.n_questions:,}"
        )
    for name, both_ways in found.benchmarks.items():
        if not both_ways["comparable"]:
            continue
        paired = both_ways["paired"]
        tested = f", p = {paired['p_value']:.3g} on {paired['n_questions']:,} questions" if paired else ""
        yield f"{name}: {_text(both_ways['values'][0])} and {_text(both_ways['values'][1])}, one protocol{tested}"


def _answer(each: Answer) -> list[str]:
    marks = {True: " (right)", False: " (wrong)", None: ""}
    said = [f"{_short(text)}{marks[right]}" for text, right in zip(each.answers, each.right, strict=True)]
    return [f"{each.data}/{each.id}" if each.data else each.id, _short(each.text), _text(each.expected or ""), *said]


def _numbers(each: Number) -> list[str]:
    cells = []
    for value, bounds in zip((each.first, each.second), each.intervals, strict=True):
        cells.append(_text(value) + (f" [{bounds.low:.3f} .. {bounds.high:.3f}]" if bounds else ""))
    return cells


def _difference(each: Number) -> str:
    values = (each.first, each.second)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return "" if each.first == each.second else "differs"
    return f"{each.second - each.first:+.4g}" if each.first != each.second else "0"


def _records(each: Changed) -> str:
    if each.added is None or each.removed is None:
        return each.note
    return f"+{each.added:,} -{each.removed:,}" + (f": {', '.join(each.shown)}" if each.shown else "")


def _count(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _text(value: Any) -> str:
    if value is ABSENT:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + "..."


def _table(title: str, headings: Sequence[str], lines: list[list[str]]) -> None:
    sys.stdout.write("\n")
    tables.write(Grid(title, [Column(each) for each in headings], lines), sys.stdout)
