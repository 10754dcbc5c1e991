"""Folders that one process has to itself: stages while they are worked on, names while they are claimed.

The kernel lets go of a lock when its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vlmrun.errors import LaunchError

try:
    import fcntl
except ImportError:  # Windows: what only reads (check, plan, ls) works there
    fcntl = None  # type: ignore[assignment]


_POLL_SECONDS = 0.5


@contextlib.contextmanager
def lock(path: Path, *, wait: bool, say: Callable[[str], None]) -> Iterator[int]:
    """Holds a stage folder for this process; the kernel lets go when the holder dies, however it dies.

    Args:
        wait: wait for another holder to finish, or refuse at once.
        say: called once with whom we wait for.

    Yields:
        The lock's file descriptor, for workers to inherit: a worker that outlives us keeps the folder locked.

    Raises:
        LaunchError: when another process holds it and `wait` is false, or where there are no such locks.
    """
    _require(path)
    fd = _open(path)
    try:
        told = False
        while not _try(fd) or not _is_at(fd, path):
            if not _is_at(fd, path):  # the folder was removed while we waited
                os.close(fd)
                fd = _open(path)
                continue
            holder = _holder(path / "lock")
            if not wait:
                raise LaunchError(
                    f"stage {path.name!r} is being worked on by {holder}",
                    str(path),
                    "wait for it (if_busy=wait), or stop that process first",
                )
            if not told:
                say(f"waiting for {holder}, which works on {path.name} (Ctrl-C to give up)")
                told = True
            time.sleep(_POLL_SECONDS)
        os.ftruncate(fd, 0)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(fd, json.dumps(note).encode(), 0)
        yield fd
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    path.mkdir(parents=True, exist_ok=True)
    return os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(fd: int, path: Path) -> bool:
    """Whether the lock file in the folder is still the one that is open."""
    try:
        return os.path.samestat(os.fstat(fd), (path / "lock").stat())
    except FileNotFoundError:
        return False


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        note = json.loads(path.read_text("utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a folder itself while something in it is chosen; waits for another process that does.

    Raises:
        LaunchError: where there are no such locks.
    """
    _require(folder)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def claim(parent: Path, name: str) -> Path:
    """Makes a folder that is ours alone: `name`, or `name-2`, `name-3` ... where another process was first."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        made = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            made.mkdir()
            return made
    raise AssertionError("numbers do not end")


def _require(path: Path) -> None:
    if fcntl is None:
        raise LaunchError(
            f"folders cannot be locked on {sys.platform}",
            str(path),
            "run it on Linux, on Windows inside WSL 2; check, plan and ls work here",
        )
