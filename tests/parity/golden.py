"""The recordings of the original codes. Nothing of what they hold is written here: another folder may take over."""

from __future__ import annotations

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "golden"  # tokenizers and base models
CASES = Path(os.environ.get("VLMRUN_GOLDEN", ASSETS))  # any part of such a folder


IS_PART = CASES != ASSETS and CASES.is_dir()


def asset(name: str) -> Path:
    """A tokenizer, a base model or images that cases use: beside the cases, or else among the assets."""
    return CASES / name if (CASES / name).exists() else need(ASSETS / name)


def need(path: Path) -> Path:
    """The path, if it is there; otherwise the test fails in CI, and is skipped elsewhere and for a part of the data."""
    if not path.exists():
        message = f"no reference data at {path}: set VLMRUN_GOLDEN"
        if os.environ.get("CI") == "true" and not IS_PART:
            pytest.fail(message)
        pytest.skip(message)
    return path


@lru_cache(maxsize=64)
def cases(name: str) -> Any:
    """What a file of cases holds: the records of `<set>/<name>.jsonl.gz`, or the value of a json file."""
    path = need(CASES / name)
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    return json.loads(path.read_text("utf-8"))


def tensors(name: str) -> dict[str, Any]:
    """The tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(need(CASES / name))


def files(pattern: str) -> list[str]:
    """Names of the files that match, relative to the root, sorted; for parametrisation (empty without data)."""
    return sorted(str(path.relative_to(CASES)) for path in CASES.glob(pattern))
