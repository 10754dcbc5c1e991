"""The whole comparison, as data: `vlmrun diff --json` writes it, `vlmrun diff` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun.compare import records, results, values
from vlmrun.compare.records import Changed
from vlmrun.compare.results import Results
from vlmrun.compare.sides import Made, Side
from vlmrun.compare.values import Change


@dataclass(frozen=True)
class Comparison:
    """What differs between two sides.

    Attributes:
        code: versions of vlmrun and of the libraries that results depend on.
        stages: those of both, in the order of the first side.
        alone: names of stages that one side has.
    """

    first: Side
    second: Side
    values: list[Change]
    data: list[Changed]
    code: list[Change]
    stages: list[Results]
    alone: tuple[list[str], list[str]]


def compare(first: Side, second: Side) -> Comparison:
    """Runs are compared stage by stage, by name; two stages with each other, whatever their names."""
    pairs = _pairs(first, second)
    shared = {made.folder for _, *both in pairs for made in both}
    return Comparison(
        first=first,
        second=second,
        values=values.changes(first.values, second.values),
        data=records.changed(first, second),
        code=values.changes(_code(first), _code(second)),
        stages=[results.compare(name, *made) for name, *made in pairs],
        alone=(_alone(first, shared), _alone(second, shared)),
    )


def _alone(side: Side, shared: set[Path]) -> list[str]:
    return [name for name, made in side.stages.items() if made.folder not in shared]


def _pairs(first: Side, second: Side) -> list[tuple[str, Made, Made]]:
    if first.kind == second.kind == "stage":
        ((ours, made),), ((theirs, other),) = first.stages.items(), second.stages.items()
        return [(ours if ours == theirs else f"{ours} / {theirs}", made, other)]
    return [(name, made, second.stages[name]) for name, made in first.stages.items() if name in second.stages]


def _code(side: Side) -> dict[str, Any]:
    """Versions by name; several where stages of a run were made by different ones."""
    found: dict[str, list[str]] = {}
    for made in side.stages.values():
        for name, version in {"vlmrun": made.artifact.version, **made.artifact.environment}.items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def to_json(found: Comparison) -> dict[str, Any]:
    """Plain values; a side that does not have a key or number has no entry for it."""
    return {
        "sides": [
            {"reference": s.reference, "kind": s.kind, "folder": str(s.folder)} for s in (found.first, found.second)
        ],
        "values": _changes(found.values),
        "data": [vars(each) for each in found.data],
        "code": _changes(found.code),
        "only_first": found.alone[0],
        "only_second": found.alone[1],
        "stages": [_stage(each) for each in found.stages],
    }


def _changes(changed: list[Change]) -> dict[str, dict[str, Any]]:
    return {each.key: _pair(each.first, each.second) for each in changed}


def _pair(first: Any, second: Any) -> dict[str, Any]:
    return {name: value for name, value in (("first", first), ("second", second)) if value is not values.ABSENT}


def _stage(found: Results) -> dict[str, Any]:
    intervals = {each.name: each.intervals for each in found.numbers if any(each.intervals)}
    return {
        "stage": found.stage,
        "same": found.same,
        "numbers": {each.name: _pair(each.first, each.second) for each in found.numbers},
        "intervals": {name: [side and [side.low, side.high] for side in pair] for name, pair in intervals.items()},
        "paired": found.paired and {**vars(found.paired), "interval": _bounds(found)},
        "protocol": found.protocol,
        "benchmarks": found.benchmarks,
        "n_asked": found.n_asked,
        "answers": [vars(each) for each in found.answers],
    }


def _bounds(found: Results) -> list[float] | None:
    interval = found.paired and found.paired.interval
    return [interval.low, interval.high] if interval else None
