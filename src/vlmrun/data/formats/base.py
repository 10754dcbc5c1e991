"""Reading records one by one from a JSON list or a JSONL file, so that an error can name its line and record.

Neither is ever in memory whole: a list of a million records is read in as little as one of ten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlmrun import logs, regular
from vlmrun.data.formats import others
from vlmrun.data.formats.window import MAX_RECORD_BYTES, Decoder, Window, reason
from vlmrun.data.sample import Rejected
from vlmrun.errors import DataError, closest

log = logs.get(__name__)

LINES = (".jsonl", ".ndjson")  # endings of files with one record a line
_SKIPPED_AT_ONCE = 1 << 20


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (index, value) of every record; the value of one that cannot be taken is a `Rejected`.

    Raises:
        DataError: when the file is missing, is no JSON text in UTF-8, or a list breaks off: what follows cannot be
            read.
    """
    check_file(path)
    first = others.check_content(path)
    if path.suffix not in LINES:
        yield from _list(path)
    elif first == "[":
        log.info("%s: it is one JSON list, and read as such", path)
        yield from _list(path)
    else:
        yield from _lines(path)


def check_source(path: Path, *, folder: bool = False) -> None:
    """Raises a DataError unless `path` is an annotation file, or the folder of a format of shards."""
    if not folder:
        check_file(path)
    elif not path.is_dir():
        raise DataError("the folder of shards does not exist", str(path), "check data.<name>.annotations")


def check_file(path: Path) -> None:
    """Raises a DataError unless `path` is a file, naming the nearest file beside it."""
    if path.is_file():
        return
    if path.is_dir():
        raise DataError("a folder stands where a file is expected", str(path), "name the annotation file itself")
    if path.exists():
        kind = regular.kind(path.stat().st_mode)
        fix = "write it to a file first: annotations are read more than once"
        raise DataError(f"{kind} stands where a file is expected", str(path), fix)
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
    decoder = Decoder()
    with path.open("rb") as handle:
        for number, line in enumerate(_cut(handle), start=1):
            if line is not None and not line.strip():
                continue
            yield index, _of_line(line, number, (str(path), index), decoder)
            index += 1


def _cut(handle: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None for one that is too long, which is never held."""
    while line := handle.readline(MAX_RECORD_BYTES):
        if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(_SKIPPED_AT_ONCE)
        yield None


def _of_line(line: bytes | None, number: int, source: tuple[str, int], decoder: Decoder) -> Any:
    """A line's record, or what is wrong with it."""
    if line is None:
        what = f"line {number} is longer than {MAX_RECORD_BYTES >> 20} MiB"
        return Rejected("", source, what, "name image files instead of putting them into the text")
    try:
        value = decoder.whole(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Rejected("", source, f"line {number} is not UTF-8: {error}", "save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        column = error.colno if isinstance(error, json.JSONDecodeError) else 1
        what = f"malformed JSON in line {number}, column {column}: {reason(error)}"
        return Rejected("", source, what, "fix that line")
    return _without_repeats(value, decoder.repeated, source)


def _without_repeats(value: Any, repeated: list[str], source: tuple[str, int]) -> Any:
    if not repeated:
        return value
    id = value.get("id") if isinstance(value, dict) else None
    what = f"key {repeated[0]!r} is written twice in one object"
    return Rejected(id if isinstance(id, str) else "", source, what, "keep the one that is meant")


def _list(path: Path) -> Iterator[tuple[int, Any]]:
    """Decodes a list item by item, from a window that moves along the file."""
    with path.open("rb") as handle:
        window = Window(handle, path)
        if window.peek() != "[":
            raise DataError("the file is not a JSON list of records", str(path), others.fix_of_object(path))
        window.position += 1
        index = 0
        while window.peek() != "]" or index > 0:  # `[]` is a list; a comma before `]` is an error
            value = window.value(index)
            yield index, _without_repeats(value, window.repeated, (str(path), index))
            index += 1
            separator = window.peek()
            if separator == "]":
                break
            if separator != ",":
                raise window.malformed(window.position, index, "expected ',' or ']' after a record")
            window.position += 1
        window.position += 1
        if window.peek():
            raise window.malformed(window.position, index, "text after the end of the list")
