"""The threads that make and write tensors, and what they need of the process: the one owner of both.

Observable if something goes wrong here: torch computes with one thread for the rest of the process (the last `Makers`
that ends gives back the number it found), or memory grows by more than a few blocks for each thread (the allocator's
thresholds are set once, in `_keep_freed_memory`, for the process).
"""

from __future__ import annotations

import collections
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt. Source: glibc/malloc/malloc.h
AT_ONCE = 8  # tensors, at most, that are made at a time


def _keep_freed_memory() -> None:
    """Lets glibc's allocator reuse the memory of slices, and give back what is much more; elsewhere this does nothing.

    Left alone it maps blocks of their size again each time, and every page of them costs a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 16 << 20)
        mallopt(_ARENA_MAX, 2)


class Makers(ThreadPoolExecutor):
    """Threads that make slices, two at least and eight at most, otherwise as many as torch has.

    Each computes as one thread: arithmetic that took all cores would stand in the others' way.

    Args:
        most: threads, at most.
    """

    _lock = threading.Lock()
    _living = 0
    _before = 1  # torch's threads before any of them lived

    def __init__(self, most: int = AT_ONCE) -> None:
        _keep_freed_memory()
        with Makers._lock:
            if not Makers._living:
                Makers._before = torch.get_num_threads()
            Makers._living += 1
        self._ended = False
        self.n = max(2, min(Makers._before, most))
        super().__init__(self.n, "slices", initializer=torch.set_num_threads, initargs=(1,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends them."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        with Makers._lock:
            Makers._living -= not self._ended
            self._ended = True
            if not Makers._living:  # what one of them said is what a new thread would go by
                torch.set_num_threads(Makers._before)


class Behind:
    """Does one thing after another in a thread beside the caller's; a few may wait, then the caller does.

    Reading, arithmetic, writing and hashing all let go of the interpreter, so that they really run side by side.
    """

    def __init__(self, ahead: int = 4) -> None:
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def do(self, what: Callable[..., Any], *given: Any) -> None:
        """Puts it at the end of the row; raises what an earlier one raised."""
        if len(self._waiting) >= self._ahead:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(what, *given))

    def wait(self) -> None:
        """Until all is done; raises what one of them raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Ends the thread; what has not begun is left undone."""
        self._pool.shutdown(wait=True, cancel_futures=True)
