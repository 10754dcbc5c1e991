"""What every metric is: a mark for one answer, and a summary of many. Pure functions, free of torch and numpy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Parity = Literal["strict", "upstream"]  # the intended arithmetic, or the original script's with its quirks

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class UpstreamStops(Exception):
    """The original script ends here without a score. Counted as a problem of the file, never raised to the user."""


@dataclass(frozen=True)
class Answered:
    """A question with its answer.

    Args:
        gold: the whole question, with what its metric compares with.
        text: the answer; None when the question was not answered.
        prompt: the question as it was kept with the answer, by which some original scripts go.
    """

    id: str
    gold: Mapping[str, Any]
    text: str | None
    prompt: str | None = None
    category: str = "all"
    image: str | None = None


@dataclass(frozen=True)
class Mark:
    """What an answer is worth, and how it was read.

    Args:
        score: from 0 to 1.
        read_as: what was compared with the expected answer; None when nothing could be read.
        doubtful: why the reading may be wrong; None when it is plain.
    """

    score: float
    read_as: str | None
    doubtful: str | None = None


UNANSWERED = Mark(0.0, None, "not answered")

Marked = tuple[Answered, Mark]
Summary = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One way to score.

    Args:
        mark: scores a single answer; raises UpstreamStops under upstream parity where the original script ends.
        summary: `value` (the number that is compared) and whatever else the family reports.
        needs: keys that every question must have.
        wrong: what of a question's other values the metric cannot use, in a few words; None when it can use them all.
        version: raised when a score can change; part of the protocol.
        scale: what `value` is at most.
    """

    mark: Callable[[Answered, Parity], Mark]
    summary: Callable[[Sequence[Marked], Parity], Summary]
    needs: tuple[str, ...] = ("answer",)
    version: int = 1
    scale: float = 1.0
    wrong: Callable[[Mapping[str, Any]], str | None] = lambda gold: None
    reads: str = ""  # how answers are read, in a few words, for tables


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def groups(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, keys in order of appearance."""
    found: dict[K, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def accuracy(marked: Sequence[Marked], parity: Parity) -> Summary:
    """The mean of all marks."""
    return {"value": mean(mark.score for _, mark in marked)}


def as_score(right: bool) -> float:
    """1 for right, 0 for wrong."""
    return 1.0 if right else 0.0
