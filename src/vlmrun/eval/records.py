"""Rows of question and annotation files: JSONL, JSON, or a table with tabs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.errors import DataError
from vlmrun.eval import submissions

_CONTAINERS = ("questions", "data", "annotations")


def read(path: Path, kind: str) -> Iterator[Any]:
    """Rows of a question file, in order.

    Args:
        kind: jsonl, json or tsv.

    Raises:
        DataError: for a file that is missing or malformed, with the line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError("no such file", str(path), "docs/guides/benchmarks.md says where it comes from") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the file: {error}", str(path), "save it as UTF-8") from error
    if kind == "tsv":
        yield from submissions.parse_tsv(text)
    elif kind == "json":
        yield from in_container(parse(text, path))
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield parse(line, path, number)


def load(path: Path) -> Any:
    """The value of a JSON file; of a JSONL file the list of its rows."""
    if path.suffix == ".jsonl":
        return list(read(path, "jsonl"))
    try:
        return parse(path.read_text("utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the file: {error}", str(path), "fetch it again") from error


def parse(text: str, path: Path, line: int = 0) -> Any:
    """A JSON value of a file.

    Args:
        line: where the text stands; 0: it is the whole file.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{path}:{line or getattr(error, 'lineno', 1)}"
        raise DataError(f"malformed JSON: {getattr(error, 'msg', 'nested too deeply')}", where, "fix it") from error


def in_container(value: Any) -> list[Any]:
    """Rows of a list, of an object around a list of them, or of an object of rows by id."""
    if isinstance(value, dict):
        held = next((value[name] for name in _CONTAINERS if isinstance(value.get(name), list)), None)
        if held is not None:
            return list(held)
        return [{"question_id": key, **row} if isinstance(row, dict) else row for key, row in value.items()]
    return list(value) if isinstance(value, list) else [value]
