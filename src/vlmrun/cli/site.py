"""`vlmrun site`: pages of all runs, stages and sweeps below an output root; only what changed is written."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmrun.cli.options import new_parser, output_option
from vlmrun.report import tables
from vlmrun.site import build

_EXAMPLES = """\
vlmrun site                    writes outputs/site/index.html
vlmrun site --output /data/outputs
"""


def main(arguments: list[str]) -> int:
    """Writes the site and prints the path of its first page."""
    parser = new_parser(
        "site", "One site for all runs, stages and sweeps, to open in a browser; no network.", _EXAMPLES
    )
    output_option(parser)
    options = parser.parse_args(arguments)
    built = build.build(Path(options.output))
    for problem in built.problems:
        sys.stderr.write(f"{problem}\n")
    sys.stderr.write(f"{built.written:,} pages written, {built.kept:,} were up to date, {built.removed:,} removed\n")
    sys.stdout.write(f"{tables.shown(built.home)}\n")
    return 0
