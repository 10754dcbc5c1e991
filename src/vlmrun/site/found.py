"""What is below an output root: runs as rows of a list, stages as folders, and what could not be read."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmrun import artifact, store
from vlmrun.artifact import Artifact
from vlmrun.config.job import JOB_FILE
from vlmrun.errors import CheckpointError
from vlmrun.names import ANSWERS, HELD_OUT, METRICS, SAMPLES, SCORES
from vlmrun.run import record
from vlmrun.run.record import Record
from vlmrun.site import lines

Stamp = list[int | None]
_GROWING = (JOB_FILE, METRICS, HELD_OUT, SAMPLES, SCORES, ANSWERS)


@dataclass(frozen=True)
class Row:
    """A run as lists show it.

    Attributes:
        label: its folder below the output root, as `vlmrun runs` calls it.
        stages: stage name -> folder name, kind and numbers; without numbers while it is not finished.
    """

    label: str
    folder: str  # below the root
    name: str
    number: int | None
    started: str
    ended: str | None
    state: str
    error: str | None
    tags: list[str]
    note: str
    archived: bool
    overrides: list[str]
    command: str
    stages: dict[str, dict[str, Any]]


@dataclass
class Found:
    """Everything there is.

    Attributes:
        stamps: of each run, by label: what its row was made from.
        unfinished: stage folders without an artifact, with their jobs, by folder name.
        problems: what could not be read, in words.
    """

    root: Path
    rows: list[Row] = field(default_factory=list)
    stamps: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Path] = field(default_factory=dict)
    unfinished: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def look(root: Path, known: dict[str, Any]) -> Found:
    """Reads what changed since `known`, which holds rows by label as `remember` gives them."""
    found = Found(root)
    _find_stages(found)
    for folder in record.folders(root):
        label = os.path.relpath(folder, root).removeprefix("runs" + os.sep)
        stamped = [*stamp([folder / record.NAME]), *stamp([folder / "stages"])]
        row = _remembered(known.get(label), stamped) or _read(found, label, folder)
        if row is None:
            continue
        found.rows.append(row)
        found.stamps[label] = stamped
    found.rows.sort(key=lambda row: row.started, reverse=True)
    return found


def remember(found: Found) -> dict[str, Any]:
    """Rows with what they were made from, JSON-ready."""
    return {row.label: {"stamp": found.stamps[row.label], "row": asdict(row)} for row in found.rows}


def stamp(paths: Iterable[Path]) -> Stamp:
    """Sizes and times of files, which say whether they changed."""
    numbers: Stamp = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            numbers.append(None)
        else:
            numbers += [status.st_size, status.st_mtime_ns]
    return numbers


def stage_stamp(found: Found, name: str) -> Stamp:
    """Of a stage: its artifact, which is written last; of an unfinished one, all that grows."""
    folder = found.stages.get(name)
    if folder is None:
        return [None]
    if name in found.unfinished:
        return stamp([*(folder / each for each in _GROWING), *sorted((folder / "logs").glob("rank-*.log"))])
    return stamp([folder / artifact.NAME, folder / SCORES])


def read_artifact(folder: Path) -> Artifact | None:
    """A stage's artifact; None where it is not finished or cannot be read."""
    try:
        return artifact.read(folder)
    except (CheckpointError, OSError):
        return None


def _find_stages(found: Found) -> None:
    base = store.stages_dir(found.root)
    for entry in sorted(os.scandir(base), key=lambda entry: entry.name) if base.is_dir() else ():
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        folder = Path(entry.path)
        if (folder / artifact.NAME).is_file():
            found.stages[entry.name] = folder
        elif (folder / JOB_FILE).is_file():
            found.stages[entry.name] = folder
            found.unfinished[entry.name] = lines.read_json(folder / JOB_FILE)


def _remembered(before: Any, stamped: Any) -> Row | None:
    """The row of a finished run that is as it was."""
    try:
        is_same = before["stamp"] == stamped and before["row"]["state"] == "finished"
        return Row(**before["row"]) if is_same else None
    except (KeyError, TypeError):
        return None


def _read(found: Found, label: str, folder: Path) -> Row | None:
    """The row of a run; one that cannot be read is a problem, and costs no other."""
    one = record.read(folder)
    if one is None or not one.launches:
        found.problems.append(f"{folder / record.NAME} cannot be read; the run is left out")
        return None
    try:
        return _row(found, label, folder, one)
    except Exception as error:  # noqa: BLE001 - damaged data raises anything, and folders vanish beside us
        found.problems.append(f"{folder} cannot be read; the run is left out: {type(error).__name__}: {error}")
        return None


def _row(found: Found, label: str, folder: Path, one: Record) -> Row:
    last = one.last
    return Row(
        label=label,
        folder=os.path.relpath(folder, found.root),
        name=one.name,
        number=one.number,
        started=last.started,
        ended=last.ended,
        state=one.state,
        error=last.error,
        tags=one.tags,
        note=one.note,
        archived=one.archived,
        overrides=one.overrides,
        command=last.command,
        stages=_stages(found, folder, one),
    )


def _stages(found: Found, folder: Path, one: Record) -> dict[str, dict[str, Any]]:
    """Finished stages by the record or, while it runs, by their links; then those that were begun since its start."""
    stages: dict[str, dict[str, Any]] = {
        name: {"id": f"{name}-{stage.key}", "kind": stage.kind, "reused": stage.reused, "numbers": stage.numbers}
        for name, stage in one.stages.items()
    }
    if one.state == "finished":
        return stages
    for link in sorted((folder / "stages").glob("*")):
        made = read_artifact(link) if link.name not in stages else None
        if made is not None:
            place = link.resolve().name
            stages[link.name] = {"id": place, "kind": made.kind, "reused": False, "numbers": made.summary}
    for place, job in found.unfinished.items():
        stage = job.get("stage")
        if job.get("run") != one.name or not isinstance(stage, dict):
            continue
        begun = _written(found.stages[place] / JOB_FILE)
        if begun is not None and begun >= _seconds(one.last.started):
            kind = str(stage.get("kind", ""))
            stages.setdefault(str(job.get("name")), {"id": place, "kind": kind, "reused": False, "numbers": {}})
    return stages


def _written(path: Path) -> float | None:
    """When a file was written; None: it is gone, as when `gc` works beside us."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _seconds(started: str) -> float:
    try:
        return datetime.datetime.fromisoformat(started).timestamp()
    except ValueError:
        return 0.0
