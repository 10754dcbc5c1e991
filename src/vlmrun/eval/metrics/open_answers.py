"""Finding the short answer inside a sentence: cue words, then numbers. Shared by MMMU and CMMMU.

Source: specification eval-and-serve 2.10 and 2.11 (MMMU's eval_utils as Bunny ships it; CMMMU's).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Value = str | float

_TRIVIAL = frozenset((":", ",", ".", "!", "?", ";", "'"))
_SCIENTIFIC = r"-?\d+(?:\.\d+)?[eE][+-]?\d+"


@dataclass(frozen=True)
class Cues:
    """How a language marks an answer.

    Args:
        pieces: pattern that an answer is split at.
        words: after each of which the answer may begin; `=` too, in the last piece.
        numbers: patterns, of numbers with thousands first, then scientific, then plain ones.
    """

    pieces: re.Pattern[str]
    words: tuple[str, ...]
    numbers: tuple[re.Pattern[str], ...]


ENGLISH = Cues(
    pieces=re.compile(r"\.\s(?=[A-Z])|\n"),
    words=("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "),
    numbers=tuple(
        re.compile(pattern)
        for pattern in (
            r"-?\b\d{1,3}(?:,\d{3})+\b",
            _SCIENTIFIC,
            r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
        )
    ),
)
CHINESE = Cues(
    pieces=re.compile(r"。|\n"),
    words=("是", "为", "所以", "等于", "方案", "选择", "正确答案", "因此", "最后", "答案", "结果"),
    numbers=tuple(
        re.compile(pattern)
        for pattern in (
            r"-?\d{1,3}(?:，\d{3})+",
            _SCIENTIFIC,
            r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?!，\d)",
        )
    ),
)


def phrases(text: str, cues: Cues, *, equations: bool = True) -> list[str]:
    """What follows the last cue of each piece, the shortest of a piece; the whole text when no piece has a cue."""
    pieces = cues.pieces.split(text)
    found = []
    for place, piece in enumerate(pieces):
        words = (*cues.words, "=") if equations and place == len(pieces) - 1 else cues.words
        tails = [piece.rsplit(word, 1)[1].strip() for word in words if word in piece]
        shortest = ""
        for tail in tails:  # an empty tail gives way to whatever comes after it
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    return found or [text]


def numbers(text: str, cues: Cues) -> list[str]:
    """Every number as it is written."""
    return [written for pattern in cues.numbers for written in pattern.findall(text)]


def number(text: str) -> float | None:
    """A number to two decimals, commas left out; None when the text is none."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return round(value, 2) if math.isfinite(value) else value


def unique(values: Iterable[Value]) -> list[Value]:
    """Each value once: numbers first, in order."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))


def holds(candidates: Sequence[Value], golds: Sequence[Value]) -> bool:
    """Whether a candidate is a gold number, or holds a gold text."""
    texts = [gold for gold in golds if isinstance(gold, str)]
    return any(
        any(text in candidate for text in texts) if isinstance(candidate, str) else candidate in golds
        for candidate in candidates
    )
