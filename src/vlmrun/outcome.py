"""How a stage, as one rank did it or as a run has it, or a point of a sweep, ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmrun.artifact import Artifact
from vlmrun.errors import VlmrunError


@dataclass(frozen=True)
class Result:
    """What a stage made.

    Args:
        summary: flat values a table shows, such as `steps`, `loss`, `accuracy`.
        roots: files and folders below the stage folder that make up the artifact.
    """

    summary: dict[str, Any]
    roots: tuple[str, ...] = field(default=("weights",))


@dataclass(frozen=True)
class Outcome:
    """A finished stage of a run."""

    name: str
    artifact: Artifact
    folder: Path
    reused: bool


@dataclass(frozen=True)
class Job:
    """One point of a sweep and how it went: the stages it finished, and the error of one that failed."""

    number: int
    overrides: list[str]
    folder: Path
    outcomes: list[Outcome]
    error: VlmrunError | None
