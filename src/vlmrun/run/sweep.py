"""`-m`: every combination of the listed values, one run each, in one light process; equal stages are shared by key."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from vlmrun import artifact, locks, logs
from vlmrun.config import overrides as words
from vlmrun.errors import ConfigError, LaunchError, Problem, VlmrunError
from vlmrun.outcome import Job

if TYPE_CHECKING:
    from vlmrun.run.pipeline import Run

log = logs.get(__name__)

MOST = 10_000  # points of a sweep; each takes half a second to be checked


def expand(overrides: Sequence[str], *, ends: bool = False) -> list[tuple[list[str], list[str]]]:
    """All combinations: (all overrides of a point, only those that differ between points).

    Args:
        ends: take the two ends of an `interval`, which a sweeper would choose from.

    Raises:
        ConfigError: for an interval, unless `ends`; for values that cannot be listed, and more points than `MOST`.
    """
    choices: list[list[str]] = []
    swept: list[bool] = []
    for text in overrides:
        try:
            override = words.parse(text)
        except words.UNREADABLE:
            choices.append([text])  # composing it will say what is wrong
            swept.append(False)
            continue
        if override.is_sweep_override():
            choices.append(_values(override, text, ends))
        else:
            choices.append([text])
        swept.append(override.is_sweep_override())
    if (n := math.prod(map(len, choices))) > MOST:
        what = f"a sweep of {n:,} points or more; {MOST:,} are the most"
        raise ConfigError(what, "command line", "list fewer values")
    points = itertools.product(*choices)
    return [(list(point), [text for text, own in zip(point, swept, strict=True) if own]) for point in points]


def _values(override: Override, text: str, ends: bool) -> list[str]:
    """An override for each value, and no more than show that there are too many."""
    key, value = override.get_key_element(), override.value()
    fix = f"list them: {key}=first,second"
    if isinstance(value, Glob):
        raise ConfigError("a pattern names no values here", words.place(text), fix)
    if not isinstance(value, IntervalSweep):
        try:
            found = [f"{key}={each}" for each in itertools.islice(override.sweep_string_iterator(), MOST + 1)]
        except (HydraException, ValueError, TypeError, ArithmeticError) as error:
            why = str(error) if isinstance(error, HydraException | ValueError) else "they are no numbers to count with"
            raise ConfigError(f"the values cannot be listed: {why}", words.place(text), fix) from error
        if not found:
            raise ConfigError("a sweep over no value at all", words.place(text), fix)
        return found
    if ends:
        return [f"{key}={value.start}", f"{key}={value.end}"]
    raise ConfigError(
        "an interval has no points of its own", override.input_line or key, "hydra/sweeper=optuna chooses them"
    )


def run(
    overrides: Sequence[str],
    root: Path,
    one: Callable[[list[str], Path], Run],
    check: Callable[[list[str]], VlmrunError | None],
) -> int:
    """Runs every point; one that fails does not stop the others.

    Args:
        root: the output root; the sweep gets a folder below it.
        one: runs a point, given its overrides and its folder.
        check: what is wrong with a point; asked of all of them before the first one starts.

    Returns:
        0, or the exit code of the first failed point.
    """
    from vlmrun.report import run_table, tables

    points = expand(overrides)
    folder = locks.claim(root / "sweeps", time.strftime("%Y-%m-%d_%H-%M-%S"))
    wrong = {number: found for number, (point, _) in enumerate(points) if (found := check(point)) is not None}
    _tell(wrong, len(points))
    jobs: list[Job] = []
    for number, (point, own) in enumerate(points):
        if number in wrong:
            jobs.append(Job(number, own, folder.resolve() / str(number), [], wrong[number]))
            artifact.write_json(folder / "sweep.json", [record(job) for job in jobs])
            continue
        log.info("sweep %d/%d: %s", number + 1, len(points), " ".join(own) or "(nothing swept)")
        where = folder.resolve() / str(number)
        try:
            jobs.append(Job(number, own, where, one(point, where).outcomes, None))
        except (VlmrunError, OSError) as cause:
            error = cause if isinstance(cause, VlmrunError) else LaunchError(str(cause), str(cause.filename or where))
            log.error("%s", error)
            jobs.append(Job(number, own, where, [], error))
        artifact.write_json(folder / "sweep.json", [record(job) for job in jobs])
    with tables.printed():
        run_table.compare(jobs)
    return next((job.error.exit_code for job in jobs if job.error is not None), 0)


def _tell(wrong: Mapping[int, VlmrunError], n_points: int) -> None:
    """Says every problem once, with the points that have it."""
    having: dict[Problem, list[int]] = {}
    for number, error in wrong.items():
        for problem in error.problems:
            having.setdefault(problem, []).append(number)
    for problem, numbers in having.items():
        who = "every trial" if len(numbers) == n_points else f"trial {', '.join(map(str, numbers))}"
        log.error("%s of the sweep: %s", who, problem)


def record(job: Job) -> dict[str, object]:
    """A point as it stands in `sweep.json`."""
    return {
        "number": job.number,
        "overrides": job.overrides,
        "folder": str(job.folder),
        "error": job.error.to_dict() if job.error else None,
        "stages": {item.name: item.artifact.summary for item in job.outcomes},
    }
