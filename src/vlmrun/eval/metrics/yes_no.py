"""Yes and no: POPE, MME, and how each set's script reads an answer.

Source: specification eval-and-serve 2.6, 2.7 and 2.12 (LLaVA eval_pope.py; MME's calculation.py and its converter;
vlmevalkit's extraction and tables).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
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
from vlmrun.eval.metrics.vqa_text import punctuation

_WORD = re.compile(r"[a-z']+")
_NEGATIONS = frozenset(("no", "not", "isn't", "aren't", "doesn't", "don't", "cannot", "can't", "wasn't", "nope"))


def read(text: str) -> tuple[str | None, str | None]:
    """Yes or no, and why that is doubtful; (None, why) when neither can be read.

    A leading yes or no decides; else the answer may hold only one of the two kinds of word.
    """
    words = _WORD.findall(text.lower().replace("’", "'"))
    if not words:
        return None, "no Latin words" if text.strip() else "empty"
    if words[0] in ("yes", "no"):
        other = "no" if words[0] == "yes" else "yes"
        return words[0], "both yes and no" if other in words else None
    says_yes, says_no = "yes" in words, bool(_NEGATIONS & set(words))
    if says_yes == says_no:
        return None, "both yes and no" if says_yes else "neither yes nor no"
    return ("yes" if says_yes else "no"), "not the first word"


def pope_text(text: str) -> str:
    """Yes or no as POPE's script has it: no only for the exact words No, not and no before the first full stop."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


def pope(row: Answered, parity: Parity) -> Mark:
    """POPE: the label is the question's `answer`."""
    return marked(row, parity, pope_text)


def marked(row: Answered, parity: Parity, upstream: Any) -> Mark:
    """A yes-or-no answer against `answer`; `upstream` is how the original script reads."""
    if row.text is None:
        return UNANSWERED
    said, doubt = read(row.text)
    if parity == "upstream":
        of_upstream = str(upstream(row.text))
        differs = None if of_upstream == said else f"the original script reads {of_upstream}, plain reading {said}"
        said, doubt = of_upstream, differs or doubt
    return Mark(as_score(said == str(row.gold["answer"]).strip().lower()), said, doubt)


def confusion(pairs: Sequence[tuple[str | None, str]]) -> dict[str, int]:
    """TP, FP, TN, FN of (read, label) with yes as positive; what could not be read is a miss of its label."""
    counts: Counter[str] = Counter()
    for said, label in pairs:
        positive = label == "yes"
        right = said == label
        counts[("TP" if right else "FN") if positive else ("TN" if right else "FP")] += 1
    return {name: counts[name] for name in ("TP", "FP", "TN", "FN")}


def rates(counts: Mapping[str, int], n_yes: int) -> dict[str, float | None]:
    """Precision, recall, F1 and accuracy; None where a denominator is 0. `yes_ratio` over what was answered."""
    positives, truths = counts["TP"] + counts["FP"], counts["TP"] + counts["FN"]
    precision = counts["TP"] / positives if positives else None
    recall = counts["TP"] / truths if truths else None
    total = sum(counts.values())
    f1 = None
    if precision is not None and recall is not None and precision + recall > 0:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "accuracy": (counts["TP"] + counts["TN"]) / total if total else None,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": n_yes / total if total else None,
    }


def pope_summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """F1 per category and their mean (Bunny's number), beside accuracy, precision, recall and the share of yes."""
    table: dict[str, Any] = {}
    for category, part in groups(marked, lambda pair: pair[0].category).items():
        pairs = [(mark.read_as, str(row.gold["answer"]).strip().lower()) for row, mark in part]
        counts = confusion(pairs)
        table[category] = {
            "n_questions": len(part),
            **counts,
            **rates(counts, sum(said == "yes" for said, _ in pairs)),
        }
    undefined = [name for name, entry in table.items() if entry["f1"] is None]
    if undefined and parity == "upstream":
        raise UpstreamStops(f"F1 is not defined for {', '.join(undefined)}")
    scores = [entry["f1"] for entry in table.values() if entry["f1"] is not None]
    return {"value": mean(scores), "accuracy": mean(mark.score for _, mark in marked), "by_category": table}


def pope_upstream(answers: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """One category as the original script counts it: zipped in file order, surplus dropped but in the yes ratio.

    Raises:
        UpstreamStops: when a rate is not defined; its argument holds the counts so far.
    """
    read_as = [pope_text(text) for text in answers]
    pairs = list(zip(read_as, labels, strict=False))
    counts = {
        "TP": pairs.count(("yes", "yes")),
        "FP": pairs.count(("yes", "no")),
        "TN": pairs.count(("no", "no")),
        "FN": pairs.count(("no", "yes")),
    }
    found = rates(counts, 0)
    if found["f1"] is None:
        raise UpstreamStops(counts)
    return {**counts, **found, "yes_ratio": read_as.count("yes") / len(read_as)}


def kit_read(text: str) -> str:
    """Yes, No or Unknown, as vlmevalkit extracts it."""
    words = punctuation(text.lower()).split()
    says_yes, says_no = "yes" in words, "no" in words
    if says_yes == says_no:
        return "Unknown"
    return "Yes" if says_yes else "No"


def kit_pope(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """vlmevalkit's POPE table, in per cent, of rows with `category`, `answer`, `extracted` and `score`.

    A row of several categories, with commas between, counts once in each and so several times overall. What is Unknown
    is never right, nor a predicted yes.
    """
    copies = [(name, row) for row in rows for name in str(row["category"]).split(",")]
    parts = groups(copies, lambda pair: pair[0])
    return [
        {"split": name, **_kit_rates([row for _, row in part])}
        for name, part in [("Overall", copies), *sorted(parts.items())]
    ]


def _kit_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    hits = sum(row["extracted"] == "Yes" and row["answer"] == "Yes" for row in rows)
    said = sum(row["extracted"] == "Yes" for row in rows)
    true = sum(row["answer"] == "Yes" for row in rows)
    precision, recall = (hits / said if said else 0.0), (hits / true if true else 0.0)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = fmean(bool(row["score"]) for row in rows) if rows else 0.0
    return {"Overall": 100 * f1, "acc": 100 * accuracy, "precision": 100 * precision, "recall": 100 * recall}
