"""What a large annotation file costs a rank: `python -m benchmarks.index [--rows N]`.

Memory and seconds until a process has its first samples, for a list made by json.load, which every rank of the
published codes holds, and for vlmrun's index, which one rank makes and all map.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lint import write
from benchmarks.measure import QUIET, Table, parser, show

# Each is a process of its own. It prints seconds, and bytes: private to it, and all that it maps.
_COMMON = """
import json, sys, time
from pathlib import Path
def memory():
    fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return {name: int(fields[name].split()[0]) * 1024 for name in ("Rss", "Anonymous")}
file, folder = Path(sys.argv[1]), Path(sys.argv[2])
"""
_LIST = """
before, began = memory(), time.perf_counter()
rows = json.load(open(file))
first = [rows[number * 7919 % len(rows)]["conversations"] for number in range(64)]
"""
_INDEX = """
import logging
from vlmrun.config.schema import DataConfig
from vlmrun.data import index, reading
data = DataConfig(format="llava", split=None, fields=None, annotations=str(file), images=str(folder / "pictures"),
                  image_roots=[], image_megapixels=64.0, ignore_keys=[], on_error="fail", prepare=None, about=None)
# The pictures of a benchmark do not exist; looking for them costs one call each, as for a real one.
reading.ImageCheck._problem = lambda self, name, suggesting: None if (self._folder.root / name).is_file() else None
before, began = memory(), time.perf_counter()
if sys.argv[3] == "make":
    index.write(folder / "index", [("d", str(file), reading.usable(data, []))])
rows = index.Index(folder / "index")
first = [rows[number * 7919 % len(rows)].turns for number in range(64)]
"""
_LAST = """
seconds, after = time.perf_counter() - began, memory()
print(json.dumps([seconds, after["Anonymous"] - before["Anonymous"], after["Rss"] - before["Rss"]]))
"""
LIST = "json.load, every rank"
CONTENDERS = {
    LIST: (_LIST, "all"),
    "index, the rank that makes it": (_INDEX, "make"),
    "index, every other rank, and resume": (_INDEX, "open"),
}
_HEADER = ["contender", "seconds to first samples", "private MB", "resident MB", "of json.load: seconds", "private"]
_NOTES = [
    "private: anonymous memory, which every rank holds for itself. resident counts mapped pages of the index as well,\n"
    "which all ranks and loader processes of a machine share. Making the index parses, checks every record and looks\n"
    "for every picture; json.load only parses.",
]


def main() -> None:
    """Writes a file, measures, prints."""
    options = parser(__doc__ or "")
    options.add_argument("--rows", type=int, default=665_000, help="records of the file")
    chosen = options.parse_args()
    n_rows = 20_000 if chosen.quick else chosen.rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        write(folder / "rows.json", n_rows)
        size = (folder / "rows.json").stat().st_size / 1e6
        found = {label: _measure(code, folder, how) for label, (code, how) in CONTENDERS.items()}
    rows = [_row(label, numbers, found[LIST]) for label, numbers in found.items()]
    show(Table(f"{n_rows:,} records, {size:.0f} MB of JSON", _HEADER, rows, _NOTES), chosen.json)


def _measure(code: str, folder: Path, how: str) -> list[float]:
    command = [sys.executable, "-c", _COMMON + code + _LAST, str(folder / "rows.json"), str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | QUIET)
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def _row(label: str, numbers: list[float], listed: list[float]) -> list[Any]:
    seconds, private, resident = numbers
    shown = [label, round(seconds, 3), round(private / 1e6, 1), round(resident / 1e6, 1)]
    return [*shown, round(seconds / listed[0], 3), round(private / listed[1], 3)]


if __name__ == "__main__":
    main()
