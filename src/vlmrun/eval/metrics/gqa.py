"""GQA: exact match over balanced questions, with its report by type, steps, words and answer distribution.

Source: specification eval-and-serve 2.4 (GQA's eval.py as Bunny ships it, LLaVA's converter).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmrun.eval.metrics.base import (
    UNANSWERED,
    Answered,
    Mark,
    Marked,
    Parity,
    Summary,
    UpstreamStops,
    as_score,
    groups,
    mean,
)

_FREE_STEPS = ("exist", "query: name", "choose name")  # operations that are not counted as reasoning


def prediction(text: str) -> str:
    """An answer as it is submitted: lower case, without full stops at its end."""
    return text.rstrip(".").lower()


def mark(row: Answered, parity: Parity) -> Mark:
    """Whether the answer is `answer`, letter by letter."""
    if row.text is None:
        if parity == "upstream":
            raise UpstreamStops(f"no prediction for question {row.id}")
        return UNANSWERED
    read = prediction(row.text if parity == "upstream" else row.text.strip())
    gold = str(row.gold["answer"])
    return Mark(as_score(read == (gold if parity == "upstream" else gold.lower())), read, None if read else "empty")


def steps(question: Mapping[str, Any]) -> int:
    """Reasoning steps of a question."""
    operations = (f"{step['operation']}: {step['argument']}" for step in question.get("semantic") or ())
    return sum(not any(free in operation for free in _FREE_STEPS) for operation in operations)


def wrong(question: Mapping[str, Any]) -> str | None:
    """GQA's own fields, where a question has them, are as GQA has them."""
    types, groups_of, semantic = (question.get(key) for key in ("types", "groups", "semantic"))
    if types is not None and not (isinstance(types, dict) and {"structural", "semantic"} <= types.keys()):
        return "`types` is not an object with `structural` and `semantic`"
    if groups_of is not None and not isinstance(groups_of, dict):
        return "`groups` is not an object"
    if types is not None and not (isinstance(semantic, list | None) and all(map(_is_step, semantic or ()))):
        return "`semantic` is not a list of steps with `operation` and `argument`"
    if types is not None and "question" not in question:
        return "`types` without `question`"
    return None


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and {"operation", "argument"} <= step.keys()


def _structural(question: Mapping[str, Any]) -> str:
    return str(question["types"]["structural"])


_GROUPS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "structural type": _structural,
    "semantic type": lambda question: str(question["types"]["semantic"]),
    "steps number": steps,
    "words number": lambda question: len(str(question["question"]).split()),
}


def summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy of balanced questions and the report; without GQA's own fields only the accuracy.

    `distribution` is None when no question has a global group.
    """
    balanced = [pair for pair in marked if pair[0].gold.get("isBalanced", True)]
    found: Summary = {"value": mean(mark.score for _, mark in balanced), "n_balanced": len(balanced)}
    if not all(row.gold.get("types") is not None for row, _ in balanced):
        return found
    is_open = groups(balanced, lambda pair: _structural(pair[0].gold) == "query")
    distribution = chi_square(balanced)
    if distribution is None and parity == "upstream":
        raise UpstreamStops("no balanced question has a global group")
    return {
        **found,
        "binary": mean(mark.score for _, mark in is_open.get(False, [])),
        "open": mean(mark.score for _, mark in is_open.get(True, [])),
        "distribution": distribution,
        "by": {name: _table(balanced, key) for name, key in _GROUPS.items()},
    }


def _table(marked: Sequence[Marked], key: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    parts = groups(marked, lambda pair: key(pair[0].gold))
    return {
        str(name): {"accuracy": mean(mark.score for _, mark in parts[name]), "n_questions": len(parts[name])}
        for name in sorted(parts)
    }


def chi_square(marked: Sequence[Marked]) -> float | None:
    """Distance of given answers from expected ones within each global group, by group size; lower is better."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for row, mark in marked:
        group = (row.gold.get("groups") or {}).get("global")
        if group is not None:
            group = str(group)
            gold[group][str(row.gold["answer"])] += 1
            given[group][mark.read_as or ""] += 1
    total = weighted = 0.0
    for group, expected in gold.items():
        size = sum(expected.values())
        weighted += size * sum((given[group][answer] - count) ** 2 / count for answer, count in expected.items())
        total += size
    return weighted / total / 100 if total else None
