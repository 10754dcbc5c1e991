"""Numbers and answers of two stages: which differ, and whether the difference means something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.compare.sides import Made
from vlmrun.compare.values import ABSENT
from vlmrun.eval import protocol, scoring, statistics
from vlmrun.eval.statistics import Interval, Paired
from vlmrun.eval.vqa import UNSEEN, is_match
from vlmrun.names import ANSWERS, MARKS, SCORES

_NEVER_EQUAL = ("seconds", "data_wait")  # of no two runs
_Id = tuple[str, str]


@dataclass(frozen=True)
class Number:
    """A number of a stage's summary on both sides, `ABSENT` where there is none; intervals of accuracies."""

    name: str
    first: Any
    second: Any
    intervals: tuple[Interval | None, Interval | None] = (None, None)


@dataclass(frozen=True)
class Answer:
    """A question that got another answer.

    Attributes:
        right: of each side; None where nothing is expected.
    """

    data: str
    id: str
    image: str | None
    text: str
    expected: Any
    answers: tuple[str, str]
    right: tuple[bool | None, bool | None]


@dataclass(frozen=True)
class Results:
    """A stage of both sides.

    Attributes:
        same: whether both are one and the same stage folder, or equal in every file.
        protocol: what the protocols of plain questions differ in.
        benchmarks: what `eval.scoring.compare` says of each.
        paired: the test of accuracies on the questions that both answered.
        answers: those that changed; `n_asked`: questions of both sides.
    """

    stage: str
    same: bool
    numbers: list[Number]
    protocol: list[str]
    benchmarks: dict[str, Any]
    paired: Paired | None
    answers: list[Answer]
    n_asked: int


def compare(stage: str, first: Made, second: Made) -> Results:
    """Two stages side by side."""
    rows = _answers(first.folder), _answers(second.folder)
    marks = _marks(rows[0]), _marks(rows[1])
    shared = [id for id in rows[0] if id in rows[1]]
    clusters = {_joined(id): row.get("image") or _joined(id) for id, row in rows[0].items()}
    scores = artifact.read_object(first.folder / SCORES), artifact.read_object(second.folder / SCORES)
    sides = list(_rows(first.folder / MARKS)), list(_rows(second.folder / MARKS))
    files = [{name: file.sha256 for name, file in made.artifact.files.items()} for made in (first, second)]
    return Results(
        stage=stage,
        same=files[0] == files[1],
        numbers=_numbers(first, second, (_interval(rows[0], marks[0]), _interval(rows[1], marks[1]))),
        benchmarks=scoring.compare(scores[0], scores[1], (sides[0], sides[1])),
        protocol=_protocol(scores[0].get("protocol"), scores[1].get("protocol")),
        paired=statistics.paired(marks[0], marks[1], clusters),
        answers=[
            _answer(id, rows[0][id], rows[1][id]) for id in shared if rows[0][id]["answer"] != rows[1][id]["answer"]
        ],
        n_asked=len(shared),
    )


def _protocol(first: Any, second: Any) -> list[str]:
    known = isinstance(first, dict) and isinstance(second, dict)  # evaluations by vlmrun 0.1.0 kept none
    return protocol.differences(first, second) if known else []


def _numbers(first: Made, second: Made, intervals: tuple[Interval | None, Interval | None]) -> list[Number]:
    ours, theirs = first.artifact.summary, second.artifact.summary
    return [
        Number(
            name, ours.get(name, ABSENT), theirs.get(name, ABSENT), intervals if name == "accuracy" else (None, None)
        )
        for name in dict.fromkeys([*ours, *theirs])
        if name not in _NEVER_EQUAL
    ]


def _answers(folder: Path) -> dict[_Id, dict[str, Any]]:
    """Rows of an evaluate stage by data and question id."""
    return {
        (str(row.get("data", "")), str(row["question_id"])): row
        for row in _rows(folder / ANSWERS)
        if "question_id" in row and isinstance(row.get("answer"), str)
    }


def _marks(rows: dict[_Id, dict[str, Any]]) -> dict[str, float]:
    """What each answer is worth, of the questions that the summary's accuracy is about."""
    return {
        _joined(id): float(row["score"]) if isinstance(row.get("score"), int | float) else float(is_match(row))
        for id, row in rows.items()
        if row.get("split") != UNSEEN and _right(row) is not None
    }


def _joined(id: _Id) -> str:
    return "/".join(id)


def _right(row: dict[str, Any]) -> bool | None:
    return is_match(row) if row.get("expected") or isinstance(row.get("score"), int | float) else None


def _interval(rows: dict[_Id, dict[str, Any]], marks: dict[str, float]) -> Interval | None:
    images = [rows[id].get("image") or _joined(id) for id in rows if _joined(id) in marks]
    return statistics.interval([marks[_joined(id)] for id in rows if _joined(id) in marks], images) if images else None


def _answer(id: _Id, first: dict[str, Any], second: dict[str, Any]) -> Answer:
    return Answer(
        data=id[0],
        id=id[1],
        image=first.get("image"),
        text=str(first.get("text", "")),
        expected=first.get("expected"),
        answers=(first["answer"], second["answer"]),
        right=(_right(first), _right(second)),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file that a finished stage wrote; a missing file has none."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
