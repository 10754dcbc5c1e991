"""`vlmrun watch`: a run while it works, in the terminal and as pages on this machine."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from vlmrun import kinds
from vlmrun.cli.options import new_parser, output_option
from vlmrun.cli.runs import find, label
from vlmrun.errors import CheckpointError
from vlmrun.report import tables
from vlmrun.report.run_table import loss_text, number, share_text
from vlmrun.report.tables import Column, Grid
from vlmrun.run import record
from vlmrun.site import build, curves, links, serve
from vlmrun.site import found as finding
from vlmrun.site.found import Found, Row

_EXAMPLES = """\
vlmrun watch              the run that was started last
vlmrun watch smoke/2      one of these
vlmrun watch --once       as it is now, without pages
"""
_STEPS = " ▁▂▃▄▅▆▇█"
_WIDTH = 24


def main(arguments: list[str]) -> int:
    """Shows a run until it ends, or until Ctrl-C; then serves its pages until Ctrl-C where a terminal watches."""
    about = "A run while it works, in the terminal, and the site of all runs on this machine's loopback."
    parser = new_parser("watch", about, _EXAMPLES)
    parser.add_argument("run", nargs="?", help="NAME, NAME/NUMBER or folder (default: the newest)")
    parser.add_argument("--port", type=int, default=0, help="of the pages (default: one that is free)")
    parser.add_argument("--seconds", type=float, default=2.0, help="between two looks (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="show it once and stop")
    output_option(parser)
    options = parser.parse_args(arguments)
    root = Path(options.output)
    folder = find(root, options.run)[0] if options.run else _newest(root)
    _require_below(root, folder)
    if options.once:
        _show(*_look(root, folder))
        return 0
    build.build(root)
    with serve.serving(root, options.port) as address:
        page = address(links.run(str(folder.relative_to(root.resolve()))))
        sys.stderr.write(f"pages: {page}\nCtrl-C ends this, not the run\n")
        try:
            _follow(root, folder, max(0.2, options.seconds))
        except KeyboardInterrupt:
            sys.stderr.write("\n")
    return 0


def _newest(root: Path) -> Path:
    known = [(one.last.started, folder.resolve()) for folder, one in record.all_of(root) if one.launches]
    if not known:
        raise CheckpointError("there is no run to watch", str(root / "runs"), "start one: vlmrun +recipe=smoke")
    return max(known)[1]


def _require_below(root: Path, folder: Path) -> None:
    """A run has pages in the site of its own output root; links followed, for `runs/NAME` may be one."""
    if not folder.is_relative_to(root.resolve()):
        own = next((each.parent for each in folder.parents if each.name in ("runs", "sweeps")), "FOLDER")
        raise CheckpointError(
            f"the run is not below the output root {root}", str(folder), f"give its own: --output {own}"
        )


def _look(root: Path, folder: Path) -> tuple[Found, Row]:
    found = finding.look(root.resolve(), {})
    name = label(root.resolve(), folder)
    row = next((row for row in found.rows if row.label == name), None)
    if row is None:
        raise CheckpointError("the run's record is gone or damaged", str(folder / record.NAME), "start the run again")
    return found, row


def _follow(root: Path, folder: Path, seconds: float) -> None:
    """Shows what changed. On a terminal the pages stay there after the run's end, until Ctrl-C."""
    terminal = tables.is_terminal(sys.stdout)
    before = None
    while True:
        found, row = _look(root, folder)
        now = (row.state, row.error, _lines(found, row))
        if now != before:
            if terminal:
                sys.stdout.write("\x1b[H\x1b[2J")
            _show(found, row)
            build.build(root)
        before = now
        if row.state != "running" and not terminal:
            return
        time.sleep(seconds)


def _show(found: Found, row: Row) -> None:
    columns = (Column("stage"), Column("kind"), Column("state"), Column("step", right=True), Column("loss", right=True),
               Column("held-out", right=True), Column("accuracy", right=True), Column("curve"))  # fmt: skip
    tables.write(Grid(f"{row.label}: {row.state}", columns, _lines(found, row)), sys.stdout)
    if row.error:
        sys.stdout.write(f"{row.error}\n")
    sys.stdout.flush()


def _lines(found: Found, row: Row) -> list[list[str]]:
    return [_line(found, name, stage["id"], stage["kind"], stage["numbers"]) for name, stage in row.stages.items()]


def _line(found: Found, name: str, place: str, kind: str, numbers: dict[str, object]) -> list[str]:
    folder = found.stages.get(place)
    trains = folder is not None and kinds.of_artifact(kind).trains
    curve = curves.read(folder) if trains and folder is not None else None
    held = [
        value for value in (curve["held"]["columns"].get("held-out loss", ()) if curve else ()) if value is not None
    ]
    return [
        name,
        kind,
        "working" if place in found.unfinished else "done",
        f"{curve['step'][-1]:.0f}" if curve and curve["step"] else "",
        loss_text(curve["last"]) if curve else "",
        loss_text(held[-1]) if held else "",
        share_text(number(numbers, "accuracy")),
        spark(curve["columns"].get("loss", [])) if curve else "",
    ]


def spark(values: list[float | None]) -> str:
    """A curve as a line of blocks, each the mean of its part."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    width = min(_WIDTH, len(known))
    edges = [place * len(known) // width for place in range(width + 1)]
    parts = [known[start:end] for start, end in itertools.pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(_STEPS[1 + round(7 * (mean - low) / (high - low or 1))] for mean in means)
