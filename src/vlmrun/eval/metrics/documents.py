"""Text read off documents, charts and scenes: edit distance, numbers with a tolerance, word match.

Source: specification eval-and-serve 2.12 (MiniCPM's vqaeval and its vlmevalkit copy; ST-VQA of LLaVA's m4c evaluator).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Parity, as_score
from vlmrun.eval.metrics.vqa_text import clean

_ENOUGH = 0.5  # a similarity below this counts as none
_TOLERANCE = 0.05
_SIGNS = re.compile(r"[^a-zA-Z0-9\s]")


def distance(first: str, second: str) -> int:
    """Levenshtein's edit distance in characters."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for place, sign in enumerate(first, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(second, start=1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (sign != other))
    return row[-1]


def _single_spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())


def anls_distances(text: str, golds: Sequence[str], *, raw_length: bool = False) -> list[float]:
    """Edit distance to each gold over the longer length, from 0 (equal) to 1.

    Args:
        raw_length: divide by the length before spaces are normalised, as the vlmevalkit copy does.
    """
    found = []
    for gold in golds:
        ours, theirs = _single_spaced(text), _single_spaced(gold)
        lengths = (text, gold) if raw_length else (ours, theirs)
        longest = max(len(each.upper()) for each in lengths)  # upper: a letter can become two
        found.append(distance(ours, theirs) / longest if longest else 0.0)
    return found


def similarity(distances: Sequence[float]) -> float:
    """ANLS of the nearest gold, nothing below one half."""
    best = 1 - min(distances)
    return best if best >= _ENOUGH else 0.0


def anls(row: Answered, parity: Parity) -> Mark:
    """ANLS against `answers` (DocVQA); under upstream parity as the vlmevalkit copy divides."""
    if row.text is None:
        return UNANSWERED
    raw = parity == "upstream"
    golds = [gold for gold in golds_of(row) if _may_be_alike(row.text, gold, raw)]
    if not golds:
        return Mark(0.0, _single_spaced(row.text), "far longer or shorter than any answer")
    return Mark(similarity(anls_distances(row.text, golds, raw_length=raw)), _single_spaced(row.text))


def _may_be_alike(text: str, gold: str, raw: bool) -> bool:
    """Whether the lengths allow a similarity of one half at all: the distance is never computed of very long texts."""
    short, long = sorted((len(_single_spaced(text)), len(_single_spaced(gold))))
    longest = max(len(text), len(gold)) if raw else long
    return 2 * (long - short) <= longest


def golds_of(row: Answered) -> list[str]:
    """`answers`, or the one `answer`."""
    several = row.gold.get("answers")
    return [str(each) for each in several] if several else [str(row.gold["answer"])]


def stvqa(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """ST-VQA's accuracy (equal once cleaned) and ANLS."""
    read = clean(text)
    accuracy = as_score(any(clean(gold) == read for gold in golds))
    plain = text.lower().strip()
    best = 0.0
    for gold in golds:
        other = gold.lower().strip()
        longest = max(len(plain), len(other))
        alike = 1 - distance(plain, other) / longest if longest else 1.0
        best = max(best, alike if alike >= _ENOUGH else 0.0)
    return accuracy, best


def relaxed(row: Answered, parity: Parity) -> Mark:
    """Numbers within 5 % of the gold, other text equal (ChartQA); upstream's kit takes 5 % of the prediction."""
    if row.text is None:
        return UNANSWERED
    text = row.text.strip()
    right = any(within(text, gold) if parity == "strict" else within(gold, text) for gold in golds_of(row))
    return Mark(as_score(right), text, None if text else "empty")


def within(prediction: str, target: str) -> bool:
    """Whether two texts are numbers no further apart than 5 % of the target, or else equal but for case.

    A target of 0 needs equal text: there is no share of it.
    """
    ours, theirs = _number(prediction), _number(target)
    if ours is not None and theirs:
        return abs(ours - theirs) / abs(theirs) <= _TOLERANCE
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contains_word(row: Answered, parity: Parity) -> Mark:
    """Whether the gold occurs in the answer as a word (MiniCPM's OCR match)."""
    if row.text is None:
        return UNANSWERED
    found = any(has_word(row.text, gold) for gold in golds_of(row) if parity == "upstream" or _plain(gold))
    return Mark(as_score(found), _plain(row.text), None if _plain(row.text) else "no Latin letters or digits")


def has_word(text: str, gold: str) -> bool:
    """The gold as a word of the answer; signs other than letters, digits and space are dropped from both, and case.

    A gold of which nothing is left is in every answer that has a word: upstream's quirk, for it knows Latin only.
    """
    sentence, word = _plain(text), _plain(gold)
    return word == sentence or re.search(rf"\b{re.escape(word)}\b", sentence) is not None


def _plain(text: str) -> str:
    return _SIGNS.sub("", text).lower()
