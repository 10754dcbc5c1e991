"""A JSON text decoded value by value from a window that moves along the file, whose size therefore does not matter."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from vlmrun.errors import DataError

MAX_RECORD_BYTES = 64 << 20  # of one record: a longer one is no text to train on, but files packed into text

_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_WORD = len("-Infinity") + len("\\uXXXX\\uXXXX")  # what an error at a cut may point back by


class Decoder:
    """JSON, and the keys that are written twice in one object: of those `json` keeps the last without a word.

    Attributes:
        repeated: such keys of the value that was decoded last.
    """

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def at(self, text: str, position: int) -> tuple[Any, int]:
        """The value that starts at a position, and where it ends."""
        self.repeated = []
        return self._json.raw_decode(text, position)

    def whole(self, text: str) -> Any:
        """The only value of a text."""
        self.repeated = []
        return self._json.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.repeated += [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        return found


def reason(error: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


class Window:
    """The part of a text file that is being decoded; of what came before, only the number of lines is kept.

    Attributes:
        position: of what comes next, in the window.
        repeated: keys that the last value holds twice in one object.
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
        self._json = Decoder()

    @property
    def repeated(self) -> list[str]:
        return self._json.repeated

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
                value, end = self._json.at(self._text, self.position)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self.malformed(error.pos, index, reason(error)) from error
            except (ValueError, RecursionError) as error:
                raise self.malformed(self.position, index, reason(error)) from error
            else:
                if end < len(self._text) or self._ended:  # a number at the very end may continue
                    self.position = end
                    return value
            if len(self._text) - self.position > MAX_RECORD_BYTES:
                raise self.malformed(self.position, index, f"it is longer than {MAX_RECORD_BYTES >> 20} MiB")
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
            "fix the file there; nothing after that place can be read",
        )

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        # An open string is reported at its start; everything else that breaks off, near the end.
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
