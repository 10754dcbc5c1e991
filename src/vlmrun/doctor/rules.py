"""The one table of rules, and what they find in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmrun.doctor import answers, training
from vlmrun.doctor.evidence import Case
from vlmrun.doctor.finding import Finding, Rule

RULES: tuple[Rule, ...] = (*answers.RULES, *training.RULES)
LIKELIEST = 3
_SAID = 0.5  # a cause that is at least so likely is said at the end of a run


@dataclass(frozen=True)
class Diagnosis:
    """What was found; causes with the likeliest first, each with its rule's name."""

    symptoms: tuple[tuple[str, Finding], ...]
    causes: tuple[tuple[str, Finding], ...]


def diagnose(case: Case, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Asks all rules."""
    found = [(rule, finding) for rule in rules for finding in rule.find(case)]
    causes = [(rule.name, finding) for rule, finding in found if not rule.symptom]
    return Diagnosis(
        tuple((rule.name, finding) for rule, finding in found if rule.symptom),
        tuple(sorted(causes, key=lambda pair: -pair[1].weight)),
    )


def messages(case: Case) -> list[str]:
    """What is said at the end of a run: what is wrong with its last models, and the likeliest causes."""
    found = diagnose(case.ended)
    symptoms = [finding for name, finding in found.symptoms if name != "error"]
    likely = [finding for _, finding in found.causes if finding.weight >= _SAID]
    return [f"{one.stage}: {one.what}" for one in [*symptoms, *likely[:LIKELIEST]]]
