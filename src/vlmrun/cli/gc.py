"""`vlmrun gc`: frees the room of stages that no run refers to, after saying which and how much."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmrun.cli.options import output_option
from vlmrun.errors import LaunchError
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid
from vlmrun.run import garbage


def main(arguments: list[str]) -> int:
    """Lists them; with `--yes` removes them."""
    parser = argparse.ArgumentParser(
        "vlmrun gc", description="Stages that no run and no other stage refers to: list them, or remove them.",
        epilog="A run that is removed (vlmrun runs remove) or whose folder is deleted no longer refers to its stages.",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    output_option(parser)
    options = parser.parse_args(arguments)
    found = garbage.unused(Path(options.output))
    total = tables.bytes_text(sum(one.n_bytes for one in found))
    if not found:
        sys.stdout.write("every stage belongs to a run\n")
        return 0
    columns = (Column("stage"), Column("state"), Column("size", right=True))
    lines = [
        [one.folder.name, "finished" if one.finished else "unfinished", tables.bytes_text(one.n_bytes)] for one in found
    ]
    tables.write(Grid(f"{len(found)} stages that no run refers to, {total}", columns, lines), sys.stdout)
    if not options.yes:
        sys.stdout.write("nothing was removed; --yes removes them\n")
        return 0
    code = 0
    for one in found:
        try:
            garbage.remove(one)
        except LaunchError as error:
            sys.stderr.write(f"{error}\n")
            code = error.exit_code
    return code
