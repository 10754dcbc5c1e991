"""What signals ask of a training run: to stop, or to save and continue."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Asked:
    """What signals asked for: to stop, to save and continue."""

    def __init__(self) -> None:
        self.stop = False
        self._saves = self._seen = 0

    def note_save(self) -> None:
        """Takes in a wish to save."""
        self._saves += 1

    def new_saves(self) -> int:
        """Wishes to save since this was last asked."""
        new = self._saves - self._seen
        self._seen += new
        return new


@contextlib.contextmanager
def noting_signals() -> Iterator[Asked]:
    """Notes SIGUSR1 and a first SIGINT or SIGTERM; a second one of these acts at once."""
    asked = Asked()
    kept: dict[int, Any] = {}

    def stop(_number: int, _frame: object) -> None:
        asked.stop = True
        for known, handler in kept.items():
            if known != signal.SIGUSR1:
                signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        kept[number] = signal.signal(number, stop)
    kept[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda _number, _frame: asked.note_save())
    try:
        yield asked
    finally:
        for known, handler in kept.items():
            signal.signal(known, handler)
