"""How a stage of a run, or a point of a sweep, ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmrun.artifact import Artifact
from vlmrun.errors import VlmrunError


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
