"""Reading records one by one from a JSON list or a JSONL file, so that an error can name its line and record.

Neither is ever in memory whole: a list of a million records is read in as little as one of ten.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlmrun.data.sample import Rejected
from vlmrun.errors import DataError, closest

_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_WORD = len("-Infinity") + len("\\uXXXX\\uXXXX")  # what an error at a cut may point back by


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
    """Decodes a list item by item, from a window that moves along the file."""
    with path.open("rb") as handle:
        window = Window(handle, path)
        if window.peek() != "[":
            fix = "wrap the records in [ ], or name a JSONL file *.jsonl"
            raise DataError("the file is not a JSON list of records", str(path), fix)
        window.position += 1
        index = 0
        while window.peek() != "]" or index > 0:  # `[]` is a list; a comma before `]` is an error
            yield index, window.value(index)
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


class Window:
    """The part of a text file that is being decoded; what lies before it is forgotten but for its number of lines.

    Attributes:
        position: of what comes next, in the window.
    """

    def __init__(self, handle: BinaryIO, path: Path, n_bytes: int = 1 << 20) -> None:
        self.path = path
        self.position = 0
        self._bytes = handle
        self._n_bytes = n_bytes
        self._n_read = 0
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._ended = False
        self._lines_before = 0
        self._columns_before = 0  # of the line that the window starts in
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; empty at the end. Stands on it afterwards."""
        while True:
            found = _SPACE.match(self._text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self._text) or self._ended:
                return self._text[self.position : self.position + 1]
            self._read(self._n_bytes)

    def value(self, index: int) -> Any:
        """Decodes the value that starts here, reading on as long as it may only be cut off."""
        self.peek()
        n_bytes = self._n_bytes
        while True:
            try:
                value, end = self._scan(self._text, self.position)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self.malformed(error.pos, index, error.msg) from error
            except RecursionError as error:
                raise self.malformed(self.position, index, "nested too deeply") from error
            else:
                if end < len(self._text) or self._ended:  # a number at the very end may go on
                    self.position = end
                    return value
            self._read(n_bytes)
            n_bytes *= 2  # a long record is tried again seldom

    def malformed(self, position: int, index: int, what: str) -> DataError:
        """An error that names line and column."""
        lines = self._text.count("\n", 0, position)
        line = self._lines_before + lines + 1
        column = position - self._text.rfind("\n", 0, position) + (0 if lines else self._columns_before)
        return DataError(
            f"malformed JSON in line {line}, column {column}, record {index}: {what}",
            f"{self.path}:{line}",
            "mend the file there; nothing after that place can be read",
        )

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        # An open string is told by its start; every other thing that breaks off, by a place near the end.
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD

    def _read(self, n_bytes: int) -> None:
        """Forgets what is behind, and reads on."""
        gone, kept = self._text[: self.position], self._text[self.position :]
        if "\n" in gone:
            self._lines_before += gone.count("\n")
            self._columns_before = 0
        self._columns_before += len(gone) - gone.rfind("\n") - 1
        data = self._bytes.read(n_bytes)
        self._ended = not data
        pending = len(self._decode.getstate()[0])
        try:
            self._text = kept + self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            what = f"the file is not UTF-8: {error.reason} at byte {self._n_read - pending + error.start}"
            raise DataError(what, str(self.path), "save the file as UTF-8") from error
        self._n_read += len(data)
        self.position = 0
