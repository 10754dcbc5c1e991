"""`vlmrun ls`: every stage below an output root, or where one of them came from. Written to stdout."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmrun import artifact, logs, store
from vlmrun.artifact import Artifact
from vlmrun.cli.options import new_parser, output_option
from vlmrun.config.job import JOB_FILE
from vlmrun.errors import CheckpointError, Problem
from vlmrun.report import lineage, tables
from vlmrun.report.run_table import loss_text, number, share_text
from vlmrun.report.tables import Column, Grid

log = logs.get(__name__)

_EXAMPLES = """\
vlmrun ls
vlmrun ls average               lineage, numbers and files of the newest one
vlmrun ls average --verify      and compare the digest of every file
"""
_CHECKPOINT = re.compile(r"step-(\d+)")
_COLUMNS = (
    *(Column("name"), Column("key", below=True), Column("kind"), Column("created"), Column("state")),
    *(Column("steps", right=True), Column("loss", right=True), Column("accuracy", right=True)),
    *(Column("size", right=True), Column("path", below=True)),
)


@dataclass(frozen=True)
class Entry:
    """A stage folder.

    Args:
        created: ISO 8601; of an unfinished stage, when it was begun.
        state: `finished`, `verified` (every file read again), `unfinished` or `damaged`.
        n_bytes: of all files in it, checkpoints included; a file linked from other stages counts in each.
        checkpoint: step of the newest checkpoint of an unfinished stage.
    """

    name: str
    key: str
    kind: str
    created: str
    state: str
    n_bytes: int
    path: str
    checkpoint: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Lists stages, or shows one.

    Raises:
        CheckpointError: when the reference names nothing, or, with everything damaged, after the list is written.
    """
    parser = new_parser("ls", "List artifacts, or show where one came from.", _EXAMPLES)
    parser.add_argument("artifact", nargs="?", help="a stage name, name-key, key, or folder")
    output_option(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--verify", action="store_true", help="read every file again and compare its digest")
    options = parser.parse_args(arguments)
    root = Path(options.output)
    if options.artifact is None:
        _list(root, as_json=options.json, thorough=options.verify)
    else:
        _show(_find(root, options.artifact), as_json=options.json, thorough=options.verify)
    return 0


def entries(root: Path, *, thorough: bool = False) -> tuple[list[Entry], list[Problem]]:
    """All stage folders, oldest first, and what is wrong with damaged ones."""
    found: list[Entry] = []
    problems: list[Problem] = []
    stages = store.stages_dir(root)
    for folder in sorted(path for path in stages.iterdir() if path.is_dir()) if stages.is_dir() else []:
        try:
            made = artifact.read(folder)
            if made is not None and thorough:
                artifact.verify(folder, made, thorough=True)
            found.append(_unfinished(folder) if made is None else _finished(folder, made, thorough=thorough))
        except CheckpointError as error:
            problems += error.problems
            found.append(_unfinished(folder, state="damaged"))
    return sorted(found, key=lambda entry: entry.created), problems


def _list(root: Path, *, as_json: bool, thorough: bool) -> None:
    found, problems = entries(root, thorough=thorough)
    if as_json:
        _write_json([asdict(entry) for entry in found])
    elif found:
        lines = [_line(entry) for entry in found]
        styles = [{"damaged": "red", "unfinished": "dim"}.get(entry.state, "") for entry in found]
        tables.write(Grid("", _COLUMNS, lines, styles), sys.stdout)
    else:
        log.warning("nothing in %s yet: vlmrun +recipe=smoke makes something", store.stages_dir(root))
    if problems:
        raise CheckpointError(problems)


def _line(entry: Entry) -> list[str]:
    steps = number(entry.summary, "steps")
    state = entry.state if entry.checkpoint is None else f"{entry.state}, at step {entry.checkpoint}"
    return [
        *(entry.name, entry.key, entry.kind, tables.local_time(entry.created), state),
        "" if steps is None else f"{steps:.0f}",
        loss_text(number(entry.summary, "loss")),
        share_text(number(entry.summary, "accuracy")),
        tables.bytes_text(entry.n_bytes),
        tables.shown(Path(entry.path)),
    ]


def _show(folder: Path, *, as_json: bool, thorough: bool) -> None:
    made = artifact.read(folder)
    assert made is not None, "only finished artifacts are found"
    if thorough:
        artifact.verify(folder, made, thorough=True)
    tree = lineage.trace(folder)
    if as_json:
        content = json.loads(made.model_dump_json())
        _write_json({"path": str(folder.resolve()), **content, "lineage": tree.to_dict()})
        return
    sys.stdout.write(
        f"{made.name}  {made.kind}, of run {made.run}, made {tables.local_time(made.created)}"
        f" by vlmrun {made.version}\n"
    )
    sys.stdout.write("\nlineage\n")
    lineage.write(tree, sys.stdout)
    sys.stdout.write("\nsummary\n")
    width = max((len(name) for name in made.summary), default=0)
    for name, value in made.summary.items():
        sys.stdout.write(
            f"  {name:{width}}  {value:.6g}\n" if isinstance(value, float) else f"  {name:{width}}  {value}\n"
        )
    checked = "every digest compared" if thorough else "--verify compares every digest"
    total = tables.bytes_text(sum(file.n_bytes for file in made.files.values()))
    sys.stdout.write(f"\nfiles ({len(made.files)}, {total}; {checked})\n")
    columns = (Column("file"), Column("size", right=True), Column("sha256", below=True))
    lines = [[name, tables.bytes_text(file.n_bytes), file.sha256] for name, file in made.files.items()]
    tables.write(Grid("", columns, lines), sys.stdout)


def _find(root: Path, reference: str) -> Path:
    """As `store.find`, but a stage that was begun is not reported as unknown."""
    try:
        return store.find(root, reference)
    except CheckpointError:
        names = {f"{entry.name}-{entry.key}": entry for entry in entries(root)[0] if entry.state == "unfinished"}
        for full, entry in names.items():
            if reference in (full, entry.name, entry.key) or Path(reference).resolve() == Path(entry.path):
                reached = f"at step {entry.checkpoint}" if entry.checkpoint is not None else "without a checkpoint"
                raise CheckpointError(
                    f"stage {entry.name!r} is not finished: it stopped {reached}, or still runs",
                    entry.path,
                    "the command that began it resumes there",
                ) from None
        raise


def _finished(folder: Path, made: Artifact, *, thorough: bool) -> Entry:
    state = "verified" if thorough else "finished"
    path = str(folder.resolve())
    return Entry(made.name, made.key, made.kind, made.created, state, _size(folder), path, summary=made.summary)


def _unfinished(folder: Path, state: str = "unfinished") -> Entry:
    name, _, key = folder.name.rpartition("-")
    began = datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)
    kind = ""
    try:
        job = folder / JOB_FILE
        began = datetime.datetime.fromtimestamp(job.stat().st_mtime, datetime.UTC)
        kind = str(json.loads(job.read_text("utf-8"))["stage"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # begun so lately, or damaged so badly, that nothing says what it is
    checkpoint = max(_checkpoints(folder / "checkpoints"), default=None) if state == "unfinished" else None
    path = str(folder.resolve())
    return Entry(
        name or folder.name, key if name else "", kind, began.isoformat(), state, _size(folder), path, checkpoint
    )


def _checkpoints(folder: Path) -> Iterator[int]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _CHECKPOINT.fullmatch(path.name):
            yield int(match[1])


def _size(folder: Path) -> int:
    """Bytes of all files; one that a running worker removes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _write_json(value: Any) -> None:
    json.dump(_finite(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
