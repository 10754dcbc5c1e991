"""Tables for people: drawn by rich on a terminal, aligned plain text in a log or a pipe."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        right: aligned right, as numbers are.
        below: listed whole under the table when the terminal is too narrow for it, so that it can still be copied.
    """

    title: str
    right: bool = False
    below: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as text. The first cell of a line names it; columns without any text are left out.

    Args:
        styles: a rich style for each line (`dim`, `red`, or empty); plain text has none.
    """

    title: str
    columns: Sequence[Column]
    lines: Sequence[Sequence[str]]
    styles: Sequence[str] = ()


def is_terminal(stream: IO[str]) -> bool:
    """Whether the stream is a terminal that wants drawings and color (`NO_COLOR` and `CI` say no)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """For what a run prints: a reader of stdout that is gone, as after `| head`, costs the print and not the run."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write(grid: Grid, stream: IO[str]) -> None:
    """Writes a table as the stream shows it best."""
    kept = [place for place in range(len(grid.columns)) if any(line[place] for line in grid.lines)]
    full = _part(grid, kept)
    if is_terminal(stream):
        _draw(full, stream)
    else:
        stream.write(plain(full))
    stream.flush()


def plain(grid: Grid) -> str:
    """The table as aligned text, readable in a log."""
    lines = [[column.title for column in grid.columns], *grid.lines]
    widths = [max(len(line[place]) for line in lines) for place in range(len(grid.columns))]
    text = [grid.title] if grid.title else []
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, grid.columns, strict=True)
        ]
        text.append(_GAP.join(cells).rstrip())
    return "\n".join(text) + "\n"


def shown(path: Path) -> str:
    """A path as it is typed: relative to where they are, unless that leads out and up."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def bytes_text(n_bytes: int) -> str:
    """`1.2 MB`."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def local_time(created: str) -> str:
    """An ISO 8601 time as a clock here shows it."""
    try:
        return datetime.datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return created


def _draw(grid: Grid, stream: IO[str]) -> None:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    table = _rich_table(grid, gap=2)
    # Measured without the console's limit, which would only say how far rich can squeeze it.
    wanted = console.measure(table, options=console.options.update_width(10_000)).maximum
    if wanted <= console.width:
        console.print(table)
        return
    above = [place for place, column in enumerate(grid.columns) if not column.below]
    console.print(_rich_table(_part(grid, above), gap=1))
    below = [place for place, column in enumerate(grid.columns) if column.below]
    if below:
        listed = _part(grid, [0, *below])
        for line in plain(Grid("", listed.columns, listed.lines)).splitlines()[1:]:
            console.print(line, markup=False, style="dim", soft_wrap=True)


def _part(grid: Grid, places: Sequence[int]) -> Grid:
    """The table with these columns only."""
    lines = [[line[place] for place in places] for line in grid.lines]
    return Grid(grid.title, [grid.columns[place] for place in places], lines, grid.styles)


def _rich_table(grid: Grid, gap: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(grid.title, style="bold") if grid.title else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    table.padding = (0, gap - 1, 0, 0)  # the box adds one
    table.pad_edge = False
    for column in grid.columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, overflow="fold", no_wrap=column.right)
    for number, line in enumerate(grid.lines):
        table.add_row(*(Text(cell) for cell in line), style=grid.styles[number] if grid.styles else None)
    return table
