"""`vlmrun gc`: frees the space of stages that no run needs, after saying which and how much."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmrun.cli.options import new_parser, output_option
from vlmrun.errors import LaunchError
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid
from vlmrun.run import garbage

_EXAMPLES = """\
vlmrun runs remove smoke/1    its stages are not referred to then
vlmrun gc                     lists such stages, with their sizes
vlmrun gc --yes               removes them
"""


def main(arguments: list[str]) -> int:
    """Lists them; with `--yes` removes them."""
    about = "Stages that no run and no other stage refers to: list them, or remove them."
    parser = new_parser("gc", about, _EXAMPLES)
    parser.add_argument("--unfinished", action="store_true", help="stages that were begun and did not finish as well")
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    output_option(parser)
    options = parser.parse_args(arguments)
    root = Path(options.output)
    found = garbage.unused(root, unfinished=options.unfinished)
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
            if not garbage.remove(root, one, unfinished=options.unfinished):
                sys.stderr.write(f"{one.folder.name} is kept: a run needs it by now\n")
        except LaunchError as error:
            sys.stderr.write(f"{error}\n")
            code = error.exit_code
    return code
