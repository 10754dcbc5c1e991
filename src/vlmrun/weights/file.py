"""A file that is written at any place, hashed and synced beside that."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from pathlib import Path

from vlmrun.weights.parallel import Behind

_SYNCED = 64 << 20  # bytes after which the disk is asked to begin: at the end there is little left to wait for
_HASHED = 1 << 20  # bytes that are read and hashed at a time
_KEEP_SIZE = 1  # of fallocate: the file does not look longer than it is. Source: linux/falloc.h


class Output:
    """A file under construction; `open` begins it, and `remove` may be called at any time.

    Args:
        n_bytes: about how long it will be: room that is taken at once.
    """

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path = path
        self._sha256, self._hashed = hashlib.sha256(), 0
        self._buffer = memoryview(bytearray(0))
        self._synced = 0
        self._n_bytes = n_bytes
        self._fd: int | None = None

    def open(self) -> None:
        """Makes the file and takes its room."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        _reserve(self._fd, self._n_bytes)

    def write(self, data: memoryview, at: int) -> None:
        """The system takes 2 GiB at most at a time, and on a full disk less than it was given."""
        assert self._fd is not None
        while data:
            n = os.pwrite(self._fd, data, at)
            data, at = data[n:], at + n

    def hash(self, stop: int) -> None:
        """Takes in what is before `stop`: read again, as it need not have been written in order."""
        assert self._fd is not None
        if not self._buffer:
            self._buffer = memoryview(bytearray(_HASHED))
        while self._hashed < stop:
            view = self._buffer[: stop - self._hashed]
            n = os.preadv(self._fd, [view], self._hashed)
            if not n:
                raise OSError(errno.EIO, f"{self.path} ends at {self._hashed:,} bytes")
            self._sha256.update(view[:n])
            self._hashed += n

    def digest(self) -> str:
        """SHA-256 of all that was hashed."""
        return self._sha256.hexdigest()

    def sync(self, syncing: Behind, written: int) -> None:
        """Has it synced when much of what is before `written` has not been."""
        if written - self._synced >= _SYNCED:
            self._synced = written
            assert self._fd is not None
            syncing.do(os.fsync, self._fd)

    def close(self, n_bytes: int) -> None:
        """Cuts off what was reserved and not used, syncs, closes."""
        assert self._fd is not None
        os.ftruncate(self._fd, n_bytes)
        os.fsync(self._fd)
        self.release()

    def remove(self) -> None:
        """Whatever state it is in."""
        self.release()
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives up what it holds but the file itself."""
        self._buffer = memoryview(bytearray(0))
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def _reserve(fd: int, size: int) -> None:
    """Takes room on the disk for a file that will grow: what does not fit is reported at once, and writing is faster.

    Where a file system cannot, nothing happens; glibc's posix_fallocate would write all of it instead.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None or call(fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(number, os.strerror(number))
