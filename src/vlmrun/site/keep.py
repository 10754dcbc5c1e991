"""The site is brought up to date while a run works, and at its end, by processes of its own: `vlmrun site`.

A process, so that a run neither loads what pages need nor shares its fate; `VLMRUN_SITE=off` does without.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vlmrun import logs

log = logs.get(__name__)

OFF = "VLMRUN_SITE"
_SECONDS = 15.0
_SHARE = 20  # of the time at most one part in twenty is spent on it
_LONGEST = 300.0  # seconds; what is missing then is written by the next one
_LAST = 20.0  # that a run's end waits at most for its last pages
_GRACE = 2.0  # for a process that is ended, which a hung disk can hold
_STOPPED = 130  # how vlmrun ends at Ctrl-C


@contextlib.contextmanager
def kept(root: Path) -> Iterator[None]:
    """Rebuilds the site every few seconds, and at the end. What goes wrong there is logged and stops no run.

    A run that is stopped (Ctrl-C, SIGTERM) ends at once: its pages say so after the next build.
    """
    if os.environ.get(OFF, "").lower() in ("off", "0", "false"):
        yield
        return
    keeper = _Keeper(root)
    try:
        yield
    except BaseException as error:
        keeper.end(last=isinstance(error, Exception))
        raise
    keeper.end(last=True)


class _Keeper:
    """Starts `vlmrun site` again and again, one at a time, in a thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._over = threading.Event()
        self._lock = threading.Lock()  # nothing is started once it is over
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="site")
        with contextlib.suppress(RuntimeError):  # no thread is left: pages are written at the end
            self._thread.start()

    def end(self, *, last: bool) -> None:
        """Ends what is being built, which is out of date by now.

        Args:
            last: brings the site up to date once more.
        """
        with self._lock:
            self._over.set()
            process = self._process
        if process is not None:
            _end(process)
        if self._thread.ident is not None:
            self._thread.join(_GRACE)
        if last:
            self._refresh(_LAST, last=True)

    def _work(self) -> None:
        pause = _SECONDS
        while not self._over.wait(pause):
            pause = max(_SECONDS, _SHARE * self._refresh(_LONGEST))

    def _refresh(self, limit: float, *, last: bool = False) -> float:
        """Brings the site up to date within a number of seconds; returns those that it took."""
        began = time.monotonic()
        try:
            if self._root.is_dir():
                self._build(limit, last=last)
        except Exception as error:  # noqa: BLE001 - pages are not worth a run
            _warn(f"{type(error).__name__}: {error}")
        return time.monotonic() - began

    def _build(self, limit: float, *, last: bool) -> None:
        with tempfile.TemporaryFile() as said:
            with self._lock:
                if self._over.is_set() and not last:
                    return
                self._process = process = _start(self._root, said.fileno())
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                _warn(f"it takes longer than {limit:.0f} s; vlmrun site brings it up to date")
            else:
                if code > 0 and code != _STOPPED:  # below 0: ended by a signal, as by Ctrl-C
                    said.seek(0)
                    _warn("\n".join(said.read().decode("utf-8", errors="replace").splitlines()[-3:]))
            finally:
                _end(process)
                self._process = None


def _start(root: Path, said: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlmrun", "site", "--output", str(root)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)


def _end(process: subprocess.Popen[bytes]) -> None:
    for ask in (process.terminate, process.kill):  # the first lets it take away half a page
        if process.poll() is None:
            ask()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)


@cache
def _warn(why: str) -> None:
    """Says each cause once."""
    log.warning("the site is not up to date: %s", why)
