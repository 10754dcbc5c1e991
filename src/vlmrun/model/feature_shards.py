"""Rows of one size in files that many processes add to and read: a folder that holds what was computed once.

    NAME.keys   a line of JSON that says what a row is, then 20 bytes a row: its key and a check sum
    NAME.rows   the rows, one after another

Each process appends to files of its own, a row before its key, and never changes what is there; so nothing is locked,
and a process that is killed leaves at most a row without a key. Rows are read with pread, out of the page cache that
all processes of a machine share: a file that was cut short is found out, where a mapped one would end the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmrun import logs

log = logs.get(__name__)

KEY_BYTES = 16
_ENTRY = KEY_BYTES + 4
_MOST_HEADER = 1 << 16
_MOST_OPEN = 64
_RESERVED = 0.05  # share of the disk that is left free


class FeatureShards:
    """The rows of a folder.

    Args:
        folder: made when the first row is added.

    Attributes:
        described: what a row is, as JSON values; None while there is none.
        n_bytes: of a row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.described: Any = None
        self.n_bytes = 0
        self._rows: dict[bytes, list[tuple[Path, int, int]]] = {}  # key -> file, number, check sum of each copy
        self._seen: dict[Path, int] = {}  # bytes of each file of keys that have been read
        self._open: dict[Path, int] = {}  # descriptors of files of rows
        self._damaged: set[Path] = set()  # which has been said
        self._own: tuple[Path, int, int] | None = None
        self._n_own = 0
        self._full = False
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Learns of rows that other processes have added."""
        if not self.folder.is_dir():
            return
        for file in sorted(self.folder.glob("*.keys")):
            with contextlib.suppress(OSError):  # removed meanwhile: a cache may be
                if file.stat().st_size > self._seen.get(file, 0) and (self._own is None or file != self._own[0]):
                    self._read_keys(file)

    def all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """A row for each key, those included that another process has just added; None for one that is missing."""
        if any(key not in self._rows for key in keys):
            self.refresh()
        return [self.get(key) for key in keys]

    def get(self, key: bytes) -> bytes | None:
        """A row; None for one that is not there or is damaged wherever it is."""
        places = self._rows.get(key, [])
        while places:
            file, number, checksum = places[-1]
            try:
                row = os.pread(self._descriptor(file), self.n_bytes, number * self.n_bytes)
                if len(row) == self.n_bytes and _checksum(key, row) == checksum:
                    return row
                reason = "they are damaged"
            except OSError as error:
                reason = str(error)
            (log.debug if file in self._damaged else log.warning)("rows of %s are not used: %s", file, reason)
            self._damaged.add(file)
            places.pop()
        self._rows.pop(key, None)
        return None

    def add(self, key: bytes, row: bytes, described: Any) -> None:
        """Keeps a row. A full or read-only disk ends the keeping, not the training.

        Raises:
            ValueError: for a row of another kind than those that are there.
        """
        if self.described is None:
            self.described, self.n_bytes = described, len(row)
        if (described, len(row)) != (self.described, self.n_bytes):
            raise ValueError(f"a row is {described} with {len(row)} bytes, the others {self.described}")
        if self._full or key in self._rows:
            return
        checksum = _checksum(key, row)
        try:
            file, keys, rows = self._own = self._own or self._begun()
            disk = shutil.disk_usage(self.folder)
            if disk.free < _RESERVED * disk.total:
                raise OSError("the disk is nearly full")
            _write(rows, row)
            _write(keys, key + checksum.to_bytes(4, "little"))
        except OSError as error:
            self._full = True
            log.warning("no more features are kept in %s: %s", self.folder, error)
            return
        self._rows[key] = [(file.with_suffix(".rows"), self._n_own, checksum)]
        self._n_own += 1

    def close(self) -> None:
        """Closes all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open = {}
        if self._own is not None:
            os.close(self._own[1])
            os.close(self._own[2])
            self._own = None

    def _descriptor(self, file: Path) -> int:
        """Of a file of rows. A folder that many runs have added to has more files than a process may open."""
        if file not in self._open:
            if len(self._open) == _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(file, os.O_RDONLY)
        return self._open[file]

    def _begun(self) -> tuple[Path, int, int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{uuid.uuid4().hex}.keys"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        rows = os.open(file.with_suffix(".rows"), flags, 0o644)
        keys = os.open(file, flags, 0o644)
        _write(keys, _header(self.described, self.n_bytes))
        return file, keys, rows

    def _read_keys(self, file: Path) -> None:
        """Takes the rows that a file has got since it was read; one that cannot be read is left alone, aloud."""
        try:
            with file.open("rb") as handle:
                header = handle.readline(_MOST_HEADER)
                if not header.endswith(b"\n"):
                    return  # it is just being written
                self._take(header)
                begin = max(self._seen.get(file, 0), len(header))
                handle.seek(begin)
                data = handle.read()
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is left out: %s", file, error)
            self._seen[file] = sys.maxsize
            return
        first, n_new = (begin - len(header)) // _ENTRY, len(data) // _ENTRY
        for number in range(n_new):
            entry = data[number * _ENTRY : (number + 1) * _ENTRY]
            place = (file.with_suffix(".rows"), first + number, int.from_bytes(entry[KEY_BYTES:], "little"))
            self._rows.setdefault(entry[:KEY_BYTES], []).append(place)
        self._seen[file] = begin + n_new * _ENTRY

    def _take(self, header: bytes) -> None:
        described, n_bytes, _ = json.loads(header)
        if header != _header(described, n_bytes):
            raise ValueError("its first line is damaged")
        if self.described is None:
            self.described, self.n_bytes = described, n_bytes
        if (described, n_bytes) != (self.described, self.n_bytes):
            raise ValueError(f"its rows are {described}, the others {self.described}")


def _header(described: Any, n_bytes: int) -> bytes:
    checksum = zlib.crc32(json.dumps([described, n_bytes]).encode())
    return json.dumps([described, n_bytes, checksum]).encode() + b"\n"


def _checksum(key: bytes, row: bytes) -> int:
    """Of both: a damaged key must not stand for another row."""
    return zlib.crc32(row, zlib.crc32(key))


def _write(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) < len(data):
        raise OSError("the disk is full")
