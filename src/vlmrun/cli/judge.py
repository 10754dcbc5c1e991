"""`vlmrun judge`: two sets of answers compared by a judge, question by question."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.cli.options import new_parser
from vlmrun.errors import ConfigError
from vlmrun.eval import judge, judge_config, records, review, review_summary
from vlmrun.eval.progress import progress
from vlmrun.eval.statistics import interval
from vlmrun.report import review_page, tables
from vlmrun.report.tables import Column, Grid

_EXAMPLES = """\
vlmrun judge questions.jsonl theirs.jsonl ours.jsonl --rules rules.json
vlmrun judge questions.jsonl theirs.jsonl ours.jsonl --rules rules.json \\
  --judge openai --both-orders
"""
_COLUMNS = (
    *(Column("category"), Column("relative", right=True), Column("first", right=True), Column("second", right=True)),
    Column("read", right=True),
)


def main(arguments: list[str]) -> int:
    """`vlmrun judge`."""
    options = _parser().parse_args(arguments)
    server = judge_config.load(options.judge, options.set)
    first, second = (list(records.read(Path(path).expanduser(), "jsonl")) for path in (options.first, options.second))
    bench = review.Bench(
        kind=options.kind,
        questions=list(records.read(Path(options.questions).expanduser(), "jsonl")),
        first=first,
        second=second,
        rules=records.load(Path(options.rules).expanduser()),
        context=[] if options.context is None else list(records.read(Path(options.context).expanduser(), "jsonl")),
    )
    asked = bench.ask() + (bench.ask(swapped=True) if options.both_orders else [])
    out = Path(options.out).expanduser()
    verdicts = _verdicts(server, [judge.request(server, one.messages()) for one in asked], out, options)
    rows = [
        {**one.row(verdict.text, review.scores(verdict.text)), "judge": server.model}
        for one, verdict in zip(asked, verdicts, strict=True)
        if verdict.text is not None
    ]
    failed = [
        {"question_id": one.question_id, "swapped": one.swapped, "reason": verdict.reason}
        for one, verdict in zip(asked, verdicts, strict=True)
        if verdict.text is None
    ]
    _write(out, bench, rows, failed)
    _tell(rows, failed, len(asked), out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "judge",
        "Let a judge compare two sets of answers. What it said is kept: the same call asks only what is missing.",
        _EXAMPLES,
    )
    parser.add_argument("questions", help="JSONL of question_id, text, category, image")
    parser.add_argument("first", help="answers to compare with (JSONL of question_id, text, answer_id)")
    parser.add_argument("second", help="our answers, such as upstream/<set>.jsonl of an evaluate stage")
    parser.add_argument("--rules", required=True, help="JSON of rules by category, each with role and prompt")
    parser.add_argument("--context", help="JSONL of captions by image")
    parser.add_argument("--kind", choices=("bench", "visual", "text"), default="bench", help="default: %(default)s")
    parser.add_argument("--judge", default="local", help="a name of conf/judge, or a YAML file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of it")
    parser.add_argument("--both-orders", action="store_true", help="ask again with the answers exchanged")
    parser.add_argument("--offline", action="store_true", help="replay what was said before, ask nothing")
    parser.add_argument("--yes", action="store_true", help="continue above most_price")
    parser.add_argument("--out", default="reviews", help="folder of reviews, page and cache (default: %(default)s)")
    return parser


def _verdicts(
    server: judge_config.Judge, bodies: Sequence[dict[str, Any]], out: Path, options: argparse.Namespace
) -> list[judge.Verdict]:
    cache = judge.Cache(out / "cache")
    new = [body for body in bodies if cache.get(cache.key(server, body)) is None]
    tokens, price = judge.estimate(server, new)
    if not options.offline:
        cost = "no price known" if price is None else f"at most {price:.2f}"
        sys.stderr.write(f"{len(new)} of {len(bodies)} reviews to ask for, about {tokens:,} tokens, {cost}\n")
        if price is not None and server.most_price is not None and price > server.most_price and not options.yes:
            raise ConfigError(
                f"the estimate {price:.2f} is above most_price {server.most_price:g}",
                options.judge,
                "--yes",
            )
    with progress("reviews", "reviews") as report:
        return judge.ask(server, bodies, cache, report, offline=options.offline)


def _write(out: Path, bench: review.Bench, rows: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]) -> None:
    artifact.write_text(out / "reviews.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    artifact.write_text(out / "unanswered.jsonl", "".join(json.dumps(row) + "\n" for row in failed))
    straight = {str(row["question_id"]): row for row in rows if not row.get("swapped")}
    texts = {
        name: {str(row["question_id"]): str(row["text"]) for row in side}
        for name, side in (("reference", bench.first), ("ours", bench.second))
    }
    data = review_summary.page_data(bench.questions, texts, {"reference": straight})
    artifact.write_text(out / "reviews.html", review_page.page(data))
    artifact.write_json(out / "summary.json", _summary(rows))


def judged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a question: of both orders the mean, and nothing where either cannot be read."""
    swapped = {str(row["question_id"]): row for row in rows if row.get("swapped")}
    if not swapped:
        return list(rows)
    found = []
    for row in rows:
        other = swapped.get(str(row["question_id"]))
        if row.get("swapped") or other is None:
            continue
        pair = review_summary.both_orders(row, other)
        found.append({**row, "tuple": [-1, -1] if pair is None else list(pair)})
    return found


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole = judged(rows)
    read = [row for row in whole if min(row["tuple"]) >= 0]
    better = [float(row["tuple"][1] > row["tuple"][0]) for row in read]
    bounds = interval(better, [row["question_id"] for row in read])
    return {
        "lines": [
            {"name": line.name, "relative": line.relative, "first": line.first, "second": line.second, "n": line.count}
            for line in review_summary.summary(whole)
        ],
        "second_is_better": sum(better) / len(better) if better else None,
        "second_is_better_interval": None if bounds is None else [bounds.low, bounds.high],
        "unread": len(whole) - len(read),
    }


def _tell(rows: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], n_asked: int, out: Path) -> None:
    whole = judged(rows)
    lines = [
        [
            line.name,
            "-" if line.relative is None else f"{line.relative:.1f}",
            f"{10 * line.first:.1f}",
            f"{10 * line.second:.1f}",
            str(line.count),
        ]
        for line in review_summary.summary(whole)
    ]
    tables.write(Grid("", _COLUMNS, lines), sys.stdout)
    unread = sum(min(row["tuple"]) < 0 for row in whole)
    sys.stdout.write(
        f"{unread} verdicts that cannot be read are left out; {len(failed)} of {n_asked} reviews were not given"
        f"{' (unanswered.jsonl; the same call asks for them again)' if failed else ''}\n"
        f"page: {tables.shown(out / 'reviews.html')}\n"
    )
