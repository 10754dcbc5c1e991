"""What the system says of a process; psutil is loaded by the first question, which `check` does not ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def status(pid: int) -> str:
    """psutil's word for what a process does; empty when there is none."""
    found = _process(pid)
    return "" if found is None else str(found.status())


def began(pid: int) -> float | None:
    """When the system started a process, in seconds since 1970; None when there is none."""
    found = _process(pid)
    return None if found is None else float(found.create_time())


def _process(pid: int) -> psutil.Process | None:
    import psutil  # a fiftieth of a second

    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
