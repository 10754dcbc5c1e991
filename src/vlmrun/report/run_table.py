"""The table at the end of a run, and the one that compares the points of a sweep; both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

if TYPE_CHECKING:
    from vlmrun.outcome import Job, Outcome

_LONGEST_ERROR = 70


@dataclass(frozen=True)
class Row:
    """A stage in numbers; None where its kind has no such number. Shares are between 0 and 1."""

    name: str
    kind: str
    steps: int | None
    loss: float | None
    held_out: float | None  # loss on held-out data of a training that evaluated on the way
    accuracy: float | None
    unseen: float | None  # accuracy on attribute combinations that no training picture has
    chance: float | None
    shuffled: float | None  # accuracy when every question is given another question's picture
    seconds: float | None
    reused: bool
    folder: Path


COLUMNS = (
    Column("stage"),
    Column("kind"),
    Column("steps", right=True),
    Column("loss", right=True),
    Column("held-out", right=True),
    Column("accuracy", right=True),
    Column("unseen", right=True),
    Column("chance", right=True),
    Column("shuffled", right=True),
    Column("seconds", right=True),
    Column("reused", below=True),
    Column("artifact", below=True),
)


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
    tables.write(Grid(heading, COLUMNS, [cells(row) for row in rows], styles), sys.stderr)


def cells(row: Row) -> list[str]:
    """A row as the text of its columns."""
    return [
        row.name,
        row.kind,
        "" if row.steps is None else str(row.steps),
        loss_text(row.loss),
        loss_text(row.held_out),
        *(share_text(value) for value in (row.accuracy, row.unseen, row.chance, row.shuffled)),
        "" if row.seconds is None else f"{row.seconds:.1f}",
        "reused" if row.reused else "",
        tables.shown(row.folder),
    ]


def compare(jobs: Sequence[Job]) -> None:
    """Writes the table of a sweep: what each point changed, how it went and how good it became."""
    rows = {job.number: summary(job.outcomes) for job in jobs}
    evaluated = list(dict.fromkeys(row.name for found in rows.values() for row in found if row.kind == "evaluate"))
    columns = [
        *(Column("job", right=True), Column("overrides"), Column("state")),
        *(Column(name, right=True) for name in evaluated),
        *(Column("loss", right=True), Column("ran", right=True), Column("reused", right=True)),
        Column("run", below=True),
    ]
    lines = [_compared(job, rows.get(job.number, []), evaluated) for job in jobs]
    n_failed = sum(job.error is not None for job in jobs)
    title = f"sweep of {len(jobs)} jobs" + (f", {n_failed} failed" if n_failed else "")
    tables.write(Grid(title, columns, lines, ["red" if job.error else "" for job in jobs]), sys.stderr)


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
    steps = number(values, "steps")
    return Row(
        name=outcome.name,
        kind=outcome.artifact.kind,
        steps=None if steps is None else int(steps),
        loss=number(values, "loss"),
        held_out=number(values, "eval_loss"),
        accuracy=number(values, "accuracy"),
        unseen=number(values, "accuracy_unseen"),
        chance=number(values, "chance"),
        shuffled=number(values, "shuffled"),
        seconds=number(values, "seconds"),
        reused=outcome.reused,
        folder=outcome.folder,
    )


def _compared(job: Job, rows: list[Row], evaluated: list[str]) -> list[str]:
    accuracy = {row.name: share_text(row.accuracy) for row in rows if row.kind == "evaluate"}
    losses = [row.loss for row in rows if row.kind == "train"]
    return [
        str(job.number),
        " ".join(job.overrides),
        _state(job),
        *(accuracy.get(name, "") for name in evaluated),
        loss_text(losses[-1]) if losses and not accuracy else "",
        str(sum(not row.reused for row in rows)) if rows else "",
        str(sum(row.reused for row in rows)) if rows else "",
        tables.shown(job.folder) if job.folder.exists() else "",
    ]


def _state(job: Job) -> str:
    if job.error is None:
        return "ok"
    lines = job.error.problems[0].what.splitlines() if job.error.problems else []
    said = " ".join(lines[0].split()) if lines else "unknown"
    return f"failed: {said if len(said) <= _LONGEST_ERROR else said[: _LONGEST_ERROR - 3] + '...'}"
