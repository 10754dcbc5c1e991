"""The table at the end of a run, and the one that compares the trials of a sweep; both on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmrun import kinds
from vlmrun.kinds.base import Number
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

if TYPE_CHECKING:
    from vlmrun.outcome import Job, Outcome

_LONGEST_ERROR = 70


@dataclass(frozen=True)
class Row:
    """A stage in numbers, by their names in its summary; None where it has no such number. Shares are from 0 to 1."""

    name: str
    kind: str
    numbers: dict[str, float]
    seconds: float | None
    reused: bool
    folder: Path


def columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Those of a table of stages; numbers are those of the kinds (`kinds/`)."""
    numbers = (Column(number.title, right=True) for number in kinds.columns(row.kind for row in rows))
    ends = (Column("seconds", right=True), Column("reused", below=True), Column("artifact", below=True))
    return (Column("stage"), Column("kind"), *numbers, *ends)


def summary(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row per finished stage, in the order they were run."""
    return [_row(outcome) for outcome in outcomes]


def show(rows: Sequence[Row], title: str) -> None:
    """Writes the table of a run."""
    n_reused = sum(row.reused for row in rows)
    seconds = sum(row.seconds or 0.0 for row in rows if not row.reused)
    reused = f", {n_reused} of them reused" if n_reused else ""
    stages = "1 stage" if len(rows) == 1 else f"{len(rows)} stages"
    heading = f"{title}: {stages}{reused}, {seconds:.1f} s of work"
    styles = ["dim" if row.reused else "" for row in rows]
    tables.write(Grid(heading, columns(rows), cells(rows), styles), sys.stdout)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as the text of `columns`."""
    shown = kinds.columns(row.kind for row in rows)
    return [_line(row, shown) for row in rows]


def _line(row: Row, shown: Sequence[Number]) -> list[str]:
    return [
        row.name,
        row.kind,
        *(_STYLES[number.style](row.numbers.get(number.key)) for number in shown),
        "" if row.seconds is None else f"{row.seconds:.1f}",
        "reused" if row.reused else "",
        tables.shown(row.folder),
    ]


def compare(jobs: Sequence[Job]) -> None:
    """Writes the table of a sweep: what each trial changed, how it went and how good it became."""
    rows = {job.number: summary(job.outcomes) for job in jobs}
    results = _telling({number: _results(found) for number, found in rows.items() if found})
    columns = [
        *(Column("trial", right=True), Column("overrides"), Column("state")),
        *(Column(name, right=True) for name in results),
        *(Column("ran", right=True), Column("reused", right=True)),
        Column("run", below=True),
    ]
    lines = [_compared(job, rows.get(job.number, []), results) for job in jobs]
    n_failed = sum(job.error is not None for job in jobs)
    title = f"sweep of {len(jobs)} trials" + (f", {n_failed} failed" if n_failed else "")
    tables.write(Grid(title, columns, lines, ["red" if job.error else "" for job in jobs]), sys.stdout)


def number(values: dict[str, Any], name: str) -> float | None:
    """A number of a summary; None when it is missing or something else."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def loss_text(loss: float | None) -> str:
    """`0.4123`, or `3.1e-05` where four decimals would say nothing."""
    if loss is None:
        return ""
    return f"{loss:.1e}" if 0 < abs(loss) < 1e-3 else f"{loss:.4f}"


def share_text(share: float | None) -> str:
    """`97.5%`."""
    return "" if share is None else f"{share:.1%}"


def _row(outcome: Outcome) -> Row:
    values = outcome.artifact.summary
    return Row(
        name=outcome.name,
        kind=outcome.artifact.kind,
        numbers={key: value for key in values if (value := number(values, key)) is not None},
        seconds=number(values, "seconds"),
        reused=outcome.reused,
        folder=outcome.folder,
    )


def _count_text(count: float | None) -> str:
    return "" if count is None else f"{count:.0f}"


def text(style: str, value: float | None) -> str:
    """A number as tables show those of its style (`kinds.base.Number`)."""
    return _STYLES[style](value)


_STYLES = {"count": _count_text, "loss": loss_text, "share": share_text}


def _results(rows: Sequence[Row]) -> dict[str, str]:
    """What a trial may be judged by, by title: accuracies, those on unseen questions, and the last losses."""
    found: dict[str, str] = {}
    for key, said in (("accuracy", ""), ("accuracy_unseen", " unseen")):
        found |= {f"{row.name}{said}": share_text(row.numbers.get(key)) for row in rows if _answers(row)}
    trained = [row for row in rows if kinds.of_artifact(row.kind).trains]
    for key, title in (("eval_loss", "held-out loss"), ("loss", "loss")):
        found[title] = loss_text(trained[-1].numbers.get(key)) if trained else ""
    return {title: text for title, text in found.items() if text}


def _telling(points: Mapping[int, dict[str, str]]) -> list[str]:
    """Titles of the results that tell trials apart; where none does, of the first one that there is."""
    titles = list(dict.fromkeys(title for found in points.values() for title in found))
    apart = [title for title in titles if len({found.get(title) for found in points.values()}) > 1]
    return apart or titles[:1]


def _compared(job: Job, rows: list[Row], results: list[str]) -> list[str]:
    found = _results(rows)
    return [
        str(job.number),
        " ".join(job.overrides),
        _state(job),
        *(found.get(name, "") for name in results),
        str(sum(not row.reused for row in rows)) if rows else "",
        str(sum(row.reused for row in rows)) if rows else "",
        tables.shown(job.folder) if job.folder.exists() else "",
    ]


def _answers(row: Row) -> bool:
    return kinds.of_artifact(row.kind).answers


def _state(job: Job) -> str:
    if job.error is None:
        return "ok"
    lines = job.error.problems[0].what.splitlines() if job.error.problems else []
    said = " ".join(lines[0].split()) if lines else "unknown"
    return f"failed: {said if len(said) <= _LONGEST_ERROR else said[: _LONGEST_ERROR - 3] + '...'}"
