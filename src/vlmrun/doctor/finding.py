"""What a rule finds, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vlmrun.doctor.evidence import Case


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        what: in a sentence without an end mark, numbers included: the evidence.
        fix: what to try.
        weight: of a cause, how likely it is, from 0 to 1; of a symptom of no meaning.
    """

    stage: str
    what: str
    fix: str
    weight: float = 1.0


@dataclass(frozen=True)
class Rule:
    """One sign that something is wrong.

    Attributes:
        name: what the guide calls it.
        means: what it says, in a sentence.
        symptom: it shows that a model did not learn; otherwise it is a cause.
    """

    name: str
    means: str
    find: Callable[[Case], Iterable[Finding]]
    symptom: bool = False
