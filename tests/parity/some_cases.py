"""A part of the recordings under other names, to prove that no test knows them.

    python -m tests.parity.some_cases OUT && VLMRUN_GOLDEN=OUT pytest tests/parity tests/golden

Every list of cases loses half of its records, every second file of conversations goes, training runs get other names.
Tokenizers, base models and images stay where they are: `golden.asset` finds them.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.parity.golden import ASSETS

_ASSETS = ("base", "average_float16", "average_float32", "datasets")


def make(out: Path, source: Path = ASSETS) -> None:
    """Writes the part into `out`, which is not there yet."""
    for number, path in enumerate(sorted(source.rglob("*"))):
        place = path.relative_to(source)
        if not path.is_file() or any(part == "base" for part in place.parts):
            continue
        if path.name.endswith(".jsonl.gz") and not _is_asset(place):
            if place.parts[0] == "g1_conversations" and number % 2 and "collator" not in path.name:
                continue
            lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
            _write(out / place, gzip.compress(b"".join(lines[number % 2 :: 2] or lines)))
        elif path.suffix == ".json" and not _is_asset(place) and place.parts[0] != "tokenizers":
            value = json.loads(path.read_text("utf-8"))
            _write(out / place, json.dumps(_half(value, place)).encode())
        elif place.parts[0] != "tokenizers":  # found among the assets
            target = out / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for index, run in enumerate(sorted((out / "g6_optim/train_runs").glob("*/result.json"))):
        if index % 2:
            shutil.rmtree(run.parent)
        else:
            run.parent.rename(run.parent.with_name(f"other-{index}"))


def _is_asset(place: Path) -> bool:
    """Configurations, recorded runs and data, which are no lists of cases."""
    return any(part in _ASSETS or part in ("train_runs", "images") for part in place.parts) or "config" in place.name


def _half(value: Any, place: Path) -> Any:
    """Every second case of a list of cases, or of each list in a table of them."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return value[1::2] or value
    if isinstance(value, dict):
        return {key: _half(each, place) if isinstance(each, list) else each for key, each in value.items()}
    return value


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
