"""Exact match: what a set of one's own is scored by unless it says otherwise."""

from __future__ import annotations

from vlmrun.data.sample import same_answer
from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Parity, as_score


def exact(row: Answered, parity: Parity) -> Mark:
    """Whether the answer is `answer`, but for letter case and surrounding space."""
    if row.text is None:
        return UNANSWERED
    read = row.text.strip()
    return Mark(as_score(same_answer(read, str(row.gold["answer"]))), read, None if read else "empty")
