"""What the benchmarks share: commands with their time and memory, the machine in a line, a plain table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "hydra-core", "pydantic")

# One thread per process: on a busy machine two OpenMP threads that wait for each other measure the other work.
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Cost:
    """Of one command: wall time, processor time, and the most memory it held."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Table:
    """A result: `rows` hold values or text, one for each name in `header`."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str]


def vlmrun() -> list[str]:
    """The command as a user starts it: the script beside this interpreter."""
    script = Path(sys.executable).with_name("vlmrun")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "vlmrun.cli"]


def run(command: Sequence[str], folder: Path, *, expected: int = 0) -> Cost:
    """Runs a command to its end, its output thrown away.

    Raises:
        RuntimeError: with the end of what it said, when its exit code is not the expected one.
    """
    said = folder / "said.txt"
    with said.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=os.environ | QUIET, stdout=output, stderr=output)
        # The children's usage in getrusage would be the largest of all so far; wait4 tells of this one alone.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{said.read_text()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def parser(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    found.add_argument("--quick", action="store_true", help="few repetitions, small work: shows that it runs")
    found.add_argument("--json", type=Path, metavar="FILE", help="write the table and the machine there as well")
    return found


def show(table: Table, file: Path | None) -> None:
    """Prints the table with the machine and the notes, and writes it to `file`."""
    assert len({*table.header}) == len(table.header), "columns of one name would be one in the file"
    where = machine()
    print(table.title)
    print(f"{where['processor']}, {where['cores']} cores, load {where['load']}; {where['versions']}\n")
    print(_text(table.header, table.rows))
    for note in table.notes:
        print(f"\n{note}")
    if file is not None:
        rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
        file.write_text(json.dumps({"title": table.title, "machine": where, "rows": rows}, indent=1) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """Processor, cores, what else it is doing, and versions."""
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {"processor": _processor(), "cores": os.cpu_count(), "load": load, "versions": ", ".join(versions)}


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text("utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as they must be; numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [any(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class Unsaved:
    """In the place of a `Saver`: what is measured is the training, not the disk."""

    waits = works = False

    def save(self, step: int) -> None:
        """Writes nothing."""

    def finish(self) -> None:
        """Has nothing to name."""
