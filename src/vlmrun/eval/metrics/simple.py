"""Exact match: what a set of one's own is scored by unless it says otherwise."""

from __future__ import annotations

from vlmrun.data.sample import same_answer
from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Parity, as_score
from vlmrun.eval.metrics.documents import golds_of


def exact(row: Answered, parity: Parity) -> Mark:
    """Whether the answer is `answer`, or one of `answers`, but for letter case and surrounding space."""
    if row.text is None:
        return UNANSWERED
    read = row.text.strip()
    right = any(same_answer(read, gold) for gold in golds_of(row))
    return Mark(as_score(right), read, None if read else "empty")
