"""From answers to a scorecard: both readings, their differences question by question, intervals, categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.errors import ConfigError
from vlmrun.eval import metrics, protocol, statistics
from vlmrun.eval.answers_file import whole
from vlmrun.eval.metrics.base import Answered, Mark, Metric, Parity, UpstreamStops, groups, mean

_LISTED = 200  # differences between the two readings that are written out
_SHOWN = 200  # characters of an answer in a list
_MOST_LABELS = 40  # of a confusion table


def metric_of(config: BenchmarkConfig) -> Metric:
    """The set's metric.

    Raises:
        ConfigError: for a set that is scored elsewhere.
    """
    if config.metric is None:
        raise ConfigError(
            "this set is scored by its server or by a judge",
            "metric",
            "vlmrun submit writes its file; see vlmrun judge",
        )
    return metrics.of(config.metric)


def card(
    name: str,
    config: BenchmarkConfig,
    rows: Sequence[Answered],
    spoken: Mapping[str, Any] | None = None,
    run: str = "",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of one benchmark, and a line for every question with how its answer was read.

    Args:
        spoken: the protocol; None: of answers that another program made.
        run: the recipe whose published number is shown; without one of that name all are.
    """
    metric = metric_of(config)
    strict, of_strict = _read(metric, rows, "strict")
    upstream, of_upstream = _read(metric, rows, "upstream")
    assert strict is not None, "plain reading never stops"
    theirs: Sequence[Mark | None] = upstream if upstream is not None else [None] * len(rows)
    lines = [_line(name, *triple) for triple in zip(rows, strict, theirs, strict=True)]
    found = {
        "benchmark": name,
        "protocol": dict(spoken or protocol.describe(config)),
        "scale": metric.scale,
        "value": of_strict["value"],
        "accuracy": mean(mark.score for mark in strict),
        "interval": _interval(metric, rows, strict, of_strict["value"]),
        "n_questions": len(rows),
        "n_answered": sum(row.text is not None for row in rows),
        "n_unread": sum(mark.read_as is None and row.text is not None for row, mark in zip(rows, strict, strict=True)),
        "n_doubtful": sum(mark.doubtful is not None for mark in strict),
        "strict": of_strict,
        "upstream": of_upstream,
        "differences": _differences(rows, strict, upstream),
        "categories": _categories(rows, strict),
        "confusion": _confusion(rows, strict),
        "note": config.note,
        **published(config, run),
    }
    return found, lines


def published(config: BenchmarkConfig, run: str) -> dict[str, Any]:
    """Published numbers of a set, of one recipe alone where it has one, and the number of ours that they belong to."""
    known = config.published
    return {"published": {run: known[run]} if run in known else known, "published_of": config.published_of}


def _interval(
    metric: Metric, rows: Sequence[Answered], marks: Sequence[Mark], value: float | None
) -> list[float] | None:
    """95 % of `value`, images drawn as wholes: a bootstrap of a mean, the grouped jackknife of any other score."""
    clusters = [row.image or row.id for row in rows]
    if metric.scale == 1.0 and value == mean(mark.score for mark in marks):
        found = statistics.interval([mark.score for mark in marks], clusters)
    else:
        pairs = list(zip(rows, marks, strict=True))
        found = statistics.grouped(
            lambda kept: metric.summary([pairs[at] for at in kept], "strict")["value"], clusters, most=metric.scale
        )
    return None if found is None else [found.low, found.high]


def _read(metric: Metric, rows: Sequence[Answered], parity: Parity) -> tuple[list[Mark] | None, dict[str, Any]]:
    """All marks and their summary; where upstream's script ends, what ends it in place of a score."""
    try:
        marks = [metric.mark(row, parity) for row in rows]
    except UpstreamStops as stopped:
        return None, {"value": None, "stops": str(stopped)}
    try:
        return marks, metric.summary(list(zip(rows, marks, strict=True)), parity)
    except UpstreamStops as stopped:
        return marks, {"value": None, "stops": str(stopped)}


def _line(name: str, row: Answered, mark: Mark, of_upstream: Mark | None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "question_id": row.id,
        "data": name,
        "image": row.image,
        "category": row.category,
        "score": mark.score,
        "read_as": _short(mark.read_as),
        "doubtful": mark.doubtful,
    }
    if of_upstream is not None:
        line["upstream"] = of_upstream.score
    return line


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    return whole(text if len(text) <= _SHOWN else text[:_SHOWN] + " ...")


def _differences(rows: Sequence[Answered], strict: Sequence[Mark], upstream: Sequence[Mark] | None) -> dict[str, Any]:
    """Questions that the two readings score differently, with what each of them read."""
    if upstream is None:
        return {"count": None, "first": []}
    found = [
        {
            "question_id": row.id,
            "answer": _short(row.text),
            "strict": {"score": ours.score, "read_as": _short(ours.read_as), "doubtful": ours.doubtful},
            "upstream": {"score": theirs.score, "read_as": _short(theirs.read_as)},
        }
        for row, ours, theirs in zip(rows, strict, upstream, strict=True)
        if ours.score != theirs.score
    ]
    return {"count": len(found), "first": found[:_LISTED]}


def _categories(rows: Sequence[Answered], marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    parts = groups(list(zip(rows, marks, strict=True)), lambda pair: pair[0].category)
    return {
        category: {
            "accuracy": mean(mark.score for _, mark in part),
            "n_questions": len(part),
            "chance": _chance([row for row, _ in part]),
        }
        for category, part in sorted(parts.items())
    }


def _chance(rows: Sequence[Answered]) -> float | None:
    """What always giving the most frequent expected answer reaches; None where several are right."""
    golds = [str(row.gold["answer"]).strip().lower() for row in rows if row.gold.get("answer") is not None]
    return Counter(golds).most_common(1)[0][1] / len(rows) if golds else None


def _confusion(rows: Sequence[Answered], marks: Sequence[Mark]) -> dict[str, dict[str, int]] | None:
    """Expected answer -> what was read -> how often, of sets with few expected answers."""
    golds = {str(row.gold.get("answer")) for row in rows}
    if len(golds) > _MOST_LABELS or any(row.gold.get("answer") is None for row in rows):
        return None
    table: dict[str, Counter[str]] = {gold: Counter() for gold in sorted(golds)}
    for row, mark in zip(rows, marks, strict=True):
        read = "(unread)" if mark.read_as is None else "(other)" if len(mark.read_as) > 20 else whole(mark.read_as)
        table[str(row.gold["answer"])][read] += 1
    return {gold: dict(counts.most_common(_MOST_LABELS)) for gold, counts in table.items()}


def compare(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    marks: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = ((), ()),
) -> dict[str, Any]:
    """Two evaluations side by side, protocols first: the sets of two scores.json, and which differences mean something.

    Args:
        first, second: contents of scores.json.
        marks: lines of their marks.jsonl, for paired tests.

    Returns:
        For every benchmark of either: `comparable`, what the protocols differ in, both values, and the paired test of
        the questions in both where marks are given.
    """
    ours, theirs = (scores.get("benchmarks") or {} for scores in (first, second))
    found: dict[str, Any] = {}
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            found[name] = {"comparable": False, "protocol": ["scored in one of the two only"]}
            continue
        apart = protocol.differences(ours[name]["protocol"], theirs[name]["protocol"])
        found[name] = {
            "comparable": not apart,
            "protocol": apart,
            "values": [ours[name]["value"], theirs[name]["value"]],
            "paired": _paired(name, marks),
        }
    return found


def _paired(name: str, marks: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    sides = [{row["question_id"]: row for row in side if row["data"] == name} for side in marks]
    scores = [{id: float(row["score"]) for id, row in side.items()} for side in sides]
    images = {id: row.get("image") or id for id, row in sides[0].items()}
    found = statistics.paired(scores[0], scores[1], images)
    return None if found is None else asdict(found)
