"""What each kind of stage does: `execute(job)` in a module of its own, which `kinds/` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a stage made.

    Args:
        summary: flat values a table shows, such as `steps`, `loss`, `accuracy`.
        roots: files and folders below the stage folder that make up the artifact.
    """

    summary: dict[str, Any]
    roots: tuple[str, ...] = field(default=("weights",))
