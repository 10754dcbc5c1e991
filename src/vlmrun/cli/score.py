"""`vlmrun score` and `vlmrun submit`: answers that exist become numbers or a server's file. Neither needs a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact, store
from vlmrun.cli.options import new_parser
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import BenchmarkConfig
from vlmrun.errors import ConfigError, DataError
from vlmrun.eval import answers_file, benchmarks, questions, scoring, submit
from vlmrun.names import MARKS, SCORES
from vlmrun.report import benchmarks as report
from vlmrun.report import tables

_ANSWERS = "answers.jsonl"
_SCORE = """\
vlmrun score answers.jsonl --benchmark pope
vlmrun score evaluate --json                       an evaluate stage, again
"""
_SUBMIT = """\
vlmrun submit benchmarks --out submissions         every set of a stage
vlmrun submit answers.jsonl --benchmark vqav2
"""


@dataclass(frozen=True)
class _Given:
    """Answers of one benchmark.

    Args:
        lines: of its answers; None: all of the file's.
        spoken: the protocol they were made under; None: another program's.
        run: that they belong to.
    """

    name: str
    config: BenchmarkConfig
    path: Path
    lines: str | None
    spoken: dict[str, Any] | None
    run: str = ""


def score(arguments: list[str]) -> int:
    """`vlmrun score`."""
    parser = _parser("score", "Score an answers file, or an evaluate stage again, without a model.", _SCORE)
    parser.add_argument("--json", action="store_true", help="the whole scorecard on stdout")
    parser.add_argument("--out", help="folder for scores.json and marks.jsonl (default: none are written)")
    options = parser.parse_args(arguments)
    cards: dict[str, Any] = {}
    marks: list[dict[str, Any]] = []
    for given in _scored(options):
        rows = questions.read(given.config)
        problems = answers_file.Problems()
        answered = answers_file.match(rows, answers_file.read(given.path, problems, given.lines), problems)
        card, lines = scoring.card(given.name, given.config, answered, given.spoken, given.run)
        cards[given.name] = {**card, "problems": problems.to_dict()}
        marks += lines
    if options.out:
        folder = Path(options.out).expanduser()
        artifact.write_json(folder / SCORES, {"benchmarks": cards})
        artifact.write_text(folder / MARKS, "".join(json.dumps(line) + "\n" for line in marks))
    if options.json:
        sys.stdout.write(json.dumps({"benchmarks": cards}, indent=2) + "\n")
    else:
        show(cards)
    return 0


def submit_(arguments: list[str]) -> int:
    """`vlmrun submit`."""
    parser = _parser("submit", "Write the file that a benchmark's server takes, and check it.", _SUBMIT)
    parser.add_argument("--out", default="submissions", help="folder for the files (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = [each for each in _given(options) if each.config.submission is not None]
    if not given:
        raise ConfigError("none of these sets has a submission", options.answers, "vlmrun score ANSWERS scores them")
    for each in given:
        rows = questions.read(each.config, need_gold=False)
        problems = answers_file.Problems()
        answered = answers_file.match(rows, answers_file.read(each.path, problems, each.lines), problems)
        path, missing = submit.write(each.name, each.config, rows, answered, Path(options.out).expanduser())
        counts = f"{len(rows)} questions, {len(missing)} without an answer"
        sys.stdout.write(f"{each.name}: {tables.shown(path)}, {counts}\n")
        _tell(problems.to_dict(), sys.stderr.write)
    return 0


def _scored(options: argparse.Namespace) -> list[_Given]:
    """What is scored here; of a stage all sets but those that a server or a judge scores."""
    given = list(_given(options))
    kept = [each for each in given if each.config.metric is not None]
    return kept or given  # the first says that it is scored elsewhere


def show(cards: dict[str, Any]) -> None:
    """The table of accuracy, interval and protocol, with problems and notes below."""
    tables.write(report.grid("", cards), sys.stdout)
    for name, card in cards.items():
        upstream = card["upstream"]
        if upstream.get("stops"):
            sys.stdout.write(f"{name}: the original script ends without a score: {upstream['stops']}\n")
        elif card["differences"]["count"]:
            sys.stdout.write(f"{name}: {card['differences']['count']} answers are read otherwise upstream (--json)\n")
        if card["note"]:
            sys.stdout.write(f"{name}: {card['note']}\n")
        _tell({f"{name}: {kind}": found for kind, found in card["problems"].items()}, sys.stdout.write)


def _tell(problems: dict[str, Any], write: Any) -> None:
    for kind, found in problems.items():
        write(f"{kind}: {found['count']}, such as {found['first'][0]}\n")


def _parser(verb: str, about: str, examples: str) -> argparse.ArgumentParser:
    parser = new_parser(verb, about, examples)
    parser.add_argument("answers", help="an answers file (JSONL or JSON), or an evaluate stage")
    parser.add_argument("--benchmark", help="a name of conf/benchmark, or a YAML file; of a stage: its own sets")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of it")
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
    return parser


def _given(options: argparse.Namespace) -> Iterator[_Given]:
    path = Path(options.answers).expanduser()
    if path.is_file():
        if options.benchmark is None:
            raise ConfigError("which set do these answers belong to?", options.answers, "--benchmark NAME")
        name, config = benchmarks.load(options.benchmark, options.set)
        yield _Given(name, config, path, None, None)
        return
    folder = store.find(Path(options.output), options.answers)
    job = StageJob.read(folder / JOB_FILE)
    spoken = _protocols(folder)
    sets = {name: data for name, data in job.data.items() if isinstance(data, BenchmarkConfig)}
    chosen = [options.benchmark] if options.benchmark else list(sets)
    if not sets or not set(chosen) <= set(sets):
        raise DataError(f"the stage answered no benchmark {options.benchmark or ''}".strip(), str(folder), _names(sets))
    for name in chosen:
        yield _Given(name, sets[name], folder / _ANSWERS, name, spoken.get(name), job.run)


def _names(sets: Sequence[str] | dict[str, Any]) -> str:
    return f"its benchmarks: {', '.join(sets) or 'none'}"


def _protocols(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / SCORES).read_text("utf-8")).get("benchmarks") or {}
    except (OSError, ValueError):
        return {}
    return {name: card["protocol"] for name, card in held.items()}
