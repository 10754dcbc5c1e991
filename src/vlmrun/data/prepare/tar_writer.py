"""One tar shard from samples that were looked at, and processes that write several at a time."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A sample as it is written: its key, its image's file, and its turns as JSON."""

    key: str
    picture: Path
    turns: bytes


class Writers:
    """Processes that write shards; with one, this process does."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pool = ProcessPoolExecutor(n) if n > 1 else None
        self._waiting: set[Future[int]] = set()
        self.n_bytes = 0

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.n_bytes += sum(done.result() for done in self._waiting)

    def submit(self, path: Path, batch: Sequence[Entry], mtime: float) -> None:
        """Writes a shard, or has it written while at most twice as many wait as there are writers."""
        if self._pool is None:
            self.n_bytes += _write_shard(path, batch, mtime)
            return
        self._waiting.add(self._pool.submit(_write_shard, path, batch, mtime))
        if len(self._waiting) >= 2 * self._n:
            finished, self._waiting = wait(self._waiting, return_when=FIRST_COMPLETED)
            self.n_bytes += sum(done.result() for done in finished)


def _write_shard(path: Path, batch: Sequence[Entry], mtime: float) -> int:
    """Writes one shard and returns its size in bytes."""
    with path.open("wb") as handle:
        with tarfile.open(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for record in batch:
                _add(archive, f"{record.key}.jpg", record.picture.read_bytes(), mtime)
                _add(archive, f"{record.key}.json", record.turns, mtime)
        handle.flush()
        os.fsync(handle.fileno())
    return path.stat().st_size


def _add(archive: tarfile.TarFile, name: str, content: bytes, mtime: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), mtime, 0o444
    member.uname = member.gname = "bigdata"
    archive.addfile(member, io.BytesIO(content))
