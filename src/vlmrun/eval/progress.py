"""How far a piece of work is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from vlmrun import logs

log = logs.get(__name__)

_SECONDS_BETWEEN_LINES = 3.0


@contextlib.contextmanager
def progress(what: str, unit: str = "questions") -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is given (done, total)."""
    if not logs.is_terminal():
        yield _lines(what, unit)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str, unit: str) -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            log.info("%s: %d of %d %s, %.0f s", what, done, total, unit, now - began)

    return report
