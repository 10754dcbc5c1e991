"""`vlmrun replay RUN`: runs it again from its record, and says whether every digest is equal. Written to stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlmrun import logs
from vlmrun.cli import runs, train
from vlmrun.cli.options import new_parser, output_option
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid
from vlmrun.run import replay
from vlmrun.run.replay import Compared

log = logs.get(__name__)

_DIFFERS = 1
_SHOWN = 10
_EXAMPLES = """\
vlmrun replay smoke              the newest run of a name
vlmrun replay smoke/1            one of them
vlmrun replay smoke --json       for a script
"""


def main(arguments: list[str]) -> int:
    """Runs and compares: 0 when every digest is equal, 1 when one differs."""
    about = (
        "Runs a run again from its record: the composed configuration, in the folder it was started in, with nothing "
        "reused of the first and nothing replaced. Then every file of every stage is compared by its digest; times in "
        "metrics are left out. Exit code 1 when something differs. The same command resumes an interrupted replay."
    )
    parser = new_parser("replay", about, _EXAMPLES)
    parser.add_argument("run", help="a run's name (its newest), NAME/NUMBER or folder")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    output_option(parser)
    options = parser.parse_args(arguments)
    logs.setup()
    outputs = Path(options.output).resolve()
    folder, found = runs.find(outputs, options.run)
    label = runs.label(outputs, folder)
    root = replay.root_of(outputs, label)
    config = replay.config_of(found, root)
    os.chdir(replay.folder_of(found))
    for change in replay.changed(found):
        log.warning("not as it was then: %s", change)
    log.info("replay of %s below %s", label, tables.shown(root))
    with contextlib.redirect_stdout(sys.stderr):  # what the run prints is its own result, not ours
        train.carry_out(config, (found.overrides, ()))
    compared = replay.compare(outputs, found, root)
    if options.json:
        stages = [asdict(one) | {"equal": one.equal} for one in compared]
        json.dump({"run": label, "root": str(root), "stages": stages}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(label, compared)
    return 0 if compared and all(one.equal for one in compared) else _DIFFERS


def _print(label: str, compared: Sequence[Compared]) -> None:
    lines = [[one.name, *(key or "-" for key in one.keys), str(one.n_files), _verdict(one)] for one in compared]
    columns = (Column("stage"), Column("key"), Column("replayed"), Column("files", right=True), Column("digests"))
    tables.write(Grid(f"replay of {label}", columns, lines), sys.stdout)
    for one in compared:
        for name in one.differ[:_SHOWN]:
            sys.stdout.write(f"differs: {one.name}/{name}\n")
        if len(one.differ) > _SHOWN:
            sys.stdout.write(f"and {len(one.differ) - _SHOWN:,} more of {one.name}\n")
    same = sum(one.equal for one in compared)
    every = f"every digest is equal, in {same} stages" if same == len(compared) else ""
    sys.stdout.write((every or f"{same} of {len(compared)} stages are equal, digest by digest") + "\n")


def _verdict(one: Compared) -> str:
    if one.missing is not None:
        return one.missing
    if one.differ:
        return f"{len(one.differ)} differ"
    return "equal" if one.equal else "equal, and the key differs: its inputs were changed"
