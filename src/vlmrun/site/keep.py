"""The site is brought up to date while a run works, and at its end, by processes of its own: `vlmrun site`.

A process, so that a run neither loads what pages need nor shares its fate; `VLMRUN_SITE=off` does without.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vlmrun import logs

log = logs.get(__name__)

OFF = "VLMRUN_SITE"
_SECONDS = 15.0
_SHARE = 20  # of the time at most one part in twenty is spent on it
_LONGEST = 300.0  # seconds; what is missing then is written by the next one


@contextlib.contextmanager
def kept(root: Path) -> Iterator[None]:
    """Rebuilds the site every few seconds. What goes wrong there is logged and stops no run."""
    if os.environ.get(OFF, "").lower() in ("off", "0", "false"):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_work, args=(root, over), daemon=True, name="site")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if root.is_dir():
            _refresh(root)


def _refresh(root: Path) -> float:
    """Brings the site up to date; returns the seconds that took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "vlmrun", "site", "--output", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("the site is not up to date: %s", error)
    else:
        if done.returncode > 0:  # below 0: ended by a signal, as by Ctrl-C
            log.warning("the site is not up to date: %s", "\n".join(done.stderr.splitlines()[-3:]))
    return time.monotonic() - began


def _work(root: Path, over: threading.Event) -> None:
    pause = _SECONDS
    while not over.wait(pause):
        pause = max(_SECONDS, _SHARE * _refresh(root))
