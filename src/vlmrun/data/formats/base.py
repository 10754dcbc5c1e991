"""Reading records one by one from a JSON list or a JSONL file, so that an error can name its line and record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.data.sample import Rejected
from vlmrun.errors import DataError, closest

_SPACE = re.compile(r"[ \t\r\n]*")


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (index, value) of every record; the value of a damaged JSONL line is a `Rejected`.

    Raises:
        DataError: when the file is missing, is not UTF-8, or a JSON list breaks off: what follows cannot be read.
    """
    check_file(path)
    if path.suffix == ".jsonl":
        yield from _lines(path)
    else:
        yield from _list(path)


def check_file(path: Path) -> None:
    """Raises a DataError unless `path` is a file, naming the nearest file beside it."""
    if path.is_file():
        return
    if path.is_dir():
        raise DataError("a folder stands where a file is expected", str(path), "name the annotation file itself")
    if not path.parent.is_dir():
        raise DataError("the annotation file's folder does not exist", str(path), "check data.<name>.annotations")
    near = closest(path.name, [p.name for p in path.parent.iterdir()])
    raise DataError(
        "the annotation file does not exist",
        str(path),
        f"did you mean {near!r}?" if near else "check data.<name>.annotations",
    )


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    index = 0
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            source = (str(path), index)
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                value = Rejected("", source, f"line {number} is not UTF-8: {error}", "save the file as UTF-8")
            except (json.JSONDecodeError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                column = error.colno if isinstance(error, json.JSONDecodeError) else 1
                value = Rejected(
                    "", source, f"malformed JSON in line {number}, column {column}: {what}", "mend that line"
                )
            yield index, value
            index += 1


def _list(path: Path) -> Iterator[tuple[int, Any]]:
    """Decodes a list item by item: the text is in memory once, its records one at a time."""
    text = _read_text(path)
    decoder = json.JSONDecoder()
    position = _after_space(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(
            "the file is not a JSON list of records", str(path), "wrap the records in [ ], or name a JSONL file *.jsonl"
        )
    position = _after_space(text, position + 1)
    index = 0
    while index > 0 or text[position : position + 1] != "]":  # `[]` is a list; a comma before `]` is an error
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _malformed(path, text, error.pos, index, error.msg) from error
        except RecursionError as error:
            raise _malformed(path, text, position, index, "nested too deeply") from error
        yield index, value
        index += 1
        position = _after_space(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            raise _malformed(path, text, position, index, "expected ',' or ']' after a record")
        position = _after_space(text, position + 1)
    end = _after_space(text, position + 1)
    if end != len(text):
        raise _malformed(path, text, end, index, "text after the end of the list")


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not UTF-8: {error}", str(path), "save the file as UTF-8") from error


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _malformed(path: Path, text: str, position: int, index: int, what: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return DataError(
        f"malformed JSON in line {line}, column {column}, record {index}: {what}",
        f"{path}:{line}",
        "mend the file there; nothing after that place can be read",
    )
