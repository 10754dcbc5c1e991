"""What can go wrong, in the user's words: what, where, how to fix, and the exit code that goes with it.

VlmrunError            1   a bug of ours, or something unforeseen
 +- ConfigError        2   the composed run is wrong; carries every problem found, not the first
 +- DataError          3   a record, an image, a folder of data
 +- CheckpointError    4   an artifact, a checkpoint, weights
 +- LaunchError        5   a process could not be started, died, or is already running elsewhere
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

# What other code may act on: the user stopped the run, or a rank failed only because another one did.
Reason = Literal["stopped", "lost_rank"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what` it is, `where` it stands, how to `fix` it."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"  at:  {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class VlmrunError(Exception):
    """Base of every error that is shown as text instead of a traceback.

    Args:
        what: what is wrong, or every problem that was found.
        where: the key, file or record.
        fix: one command or value that helps.
        reason: set where code decides by it, so that rewording a message changes nothing.
    """

    exit_code = 1

    def __init__(
        self, what: str | Sequence[Problem], where: str = "", fix: str = "", *, reason: Reason | None = None
    ) -> None:
        self.reason = reason
        if isinstance(what, str):
            self.problems = [Problem(what, where, fix)]
        else:
            self.problems = list(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[VlmrunError], tuple[list[Problem]], dict[str, Any]]:
        """Pickles the problems and the reason: an exception's default is its message alone."""
        return type(self), (self.problems,), {"reason": self.reason}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form, which a worker leaves for its parent."""
        return {
            "type": type(self).__name__,
            "problems": [asdict(problem) for problem in self.problems],
            "reason": self.reason,
        }


class ConfigError(VlmrunError):
    """The description of a run is wrong."""

    exit_code = 2


class DataError(VlmrunError):
    """A record, an image or a data file is wrong."""

    exit_code = 3


class CheckpointError(VlmrunError):
    """An artifact, a checkpoint or a weights folder is missing, damaged or does not fit."""

    exit_code = 4


class LaunchError(VlmrunError):
    """A process could not be started, died, or holds what we need."""

    exit_code = 5


_TYPES: dict[str, type[VlmrunError]] = {
    cls.__name__: cls for cls in (VlmrunError, ConfigError, DataError, CheckpointError, LaunchError)
}


def error_from_dict(data: dict[str, Any]) -> VlmrunError:
    """Rebuilds what `VlmrunError.to_dict` wrote."""
    problems = [Problem(**problem) for problem in data["problems"]]
    return _TYPES.get(data["type"], VlmrunError)(problems, reason=data.get("reason"))


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None when nothing is near."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggest(name: str, options: Iterable[str], *, noun: str = "options") -> str:
    """The `fix` line for an unknown name: the nearest option, then all of them."""
    listed = sorted(options)
    near = closest(name, listed)
    listing = f"{noun}: {', '.join(listed)}" if listed else f"there are no {noun}"
    return f"did you mean {near!r}? {listing}" if near else listing
