"""CMMMU: choices, blanks and statements in Chinese.

Source: specification eval-and-serve 2.11 (CMMMU's evaluation as Bunny ships it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Marked, Parity, Summary, as_score, groups, mean
from vlmrun.eval.metrics.open_answers import CHINESE, Cues, Value, holds, number, numbers, phrases, unique

CHOICE, BLANK, STATEMENT = "选择", "填空", "判断"
RIGHT, WRONG = "对", "错"
DOMAINS = {
    "艺术与设计": "Art & Design",
    "商业": "Business",
    "科学": "Science",
    "健康与医学": "Health & Medicine",
    "人文社会科学": "Humanities & Social Sciences",
    "技术与工程": "Technology & Engineering",
}
_ENDS = (",", ".", "!", "?", ";", ":", "'")
_LETTERS = "ABCD"
_VERDICT = Cues(CHINESE.pieces, ("是", "为", "所以", "判断", "陈述", "说法", "表达", "答案", "结果"), ())
_POSITIVE = ("正确", "对", "准确", "肯定")
_NEGATIVE = ("不对", "错误", "不正确", "不准确", "不合适", "否定", "错")
_AMBIGUOUS = ("对错", "是否正确", "否正确", "或者", "是否", "正确性", "对不")
_LONGER, _MORE_LETTERS = 20, 2  # than the gold, at most


def parse_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """All letters named most often, in order; None when nothing is named: upstream then draws one at random."""
    for sign in _ENDS:
        text = text.strip(sign)
    for counts in (
        Counter({letter: text.count(f"({letter})") for letter in _LETTERS}),
        Counter({letter: text.count(letter) for letter in _LETTERS}),
        Counter({letter: f" {text} ".count(option) for letter, option in choices.items()})
        if text.split()
        else Counter(),
    ):
        most = max(counts.values(), default=0)
        if most:
            return "".join(letter for letter in _LETTERS if counts[letter] == most)
    return None


def _plain_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """As `parse_choice`, but a letter inside a Latin word is none."""
    kept = [sign if not _in_word(text, place) else "" for place, sign in enumerate(text)]
    return parse_choice("".join(kept), choices)


def _in_word(text: str, place: int) -> bool:
    if text[place] not in _LETTERS:
        return False
    beside = text[place - 1 : place] + text[place + 1 : place + 2]
    return any(sign.isascii() and sign.isalpha() and sign not in _LETTERS for sign in beside)


def verdict(text: str, *, exact: bool = False) -> str | None:
    """对 or 错 by the balance of an answer's pieces, or None for a tie: upstream then draws.

    Args:
        exact: look for the negative words first; upstream looks for the positive ones, which 不正确 holds too.
    """
    pieces = set(phrases(text.strip("。").strip(), _VERDICT, equations=False))
    balance = 0
    for piece in pieces:
        if any(word in piece for word in _AMBIGUOUS):
            continue
        positive = any(word in piece for word in _POSITIVE)
        negative = any(word in piece for word in _NEGATIVE)
        if exact and negative:
            positive = False
        balance += 1 if positive else -1 if negative else 0
    return RIGHT if balance > 0 else WRONG if balance < 0 else None


def _letters(text: str) -> int:
    return sum(sign.isascii() and sign.isalpha() for sign in text)


def _normalize(text: str, gold: str) -> list[Value]:
    text = text.strip()
    value = number(text)
    if value is not None:
        return [value]
    if len(text) > len(gold) + _LONGER or _letters(text) > _letters(gold) + _MORE_LETTERS:
        return []
    return [text]


def candidates(text: str, gold: str) -> list[Value]:
    """Phrases and numbers that may fill the blank; text much longer than the gold is left out."""
    found = phrases(text.strip("。").strip(), CHINESE)
    found = found + [written for phrase in found for written in numbers(phrase, CHINESE)]
    return unique(value for each in found for value in _normalize(each, gold))


def blank_right(text: str, gold: str) -> bool:
    """Whether a blank is filled with the gold."""
    return holds(candidates(text, gold), _normalize(gold, gold))


def choices_of(gold: Mapping[str, Any]) -> dict[str, str]:
    """Options by letter, of option1 to option4."""
    found = {letter: gold.get(f"option{place}") for place, letter in enumerate(_LETTERS, start=1)}
    return {letter: str(option) for letter, option in found.items() if option is not None}


def mark(row: Answered, parity: Parity) -> Mark:
    """By the question's `type`. A tie or nothing found counts as wrong; upstream would draw."""
    if row.text is None:
        return UNANSWERED
    gold, kind, exact = str(row.gold["answer"]), row.gold["type"], parity == "strict"
    if kind == BLANK:
        read = " | ".join(map(str, candidates(row.text, gold)))
        return Mark(
            as_score(blank_right(row.text, gold)), read or None, None if read else "nothing as short as a blank"
        )
    if kind == CHOICE:
        said = (_plain_choice if exact else parse_choice)(row.text, choices_of(row.gold))
    else:
        said = verdict(row.text, exact=exact)
    return Mark(as_score(said == gold), said, None if said else "the original script guesses here")


def summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy, by domain and by type of question."""
    domains = groups(marked, lambda pair: DOMAINS.get(str(pair[0].gold.get("category")), pair[0].category))
    types = groups(marked, lambda pair: str(pair[0].gold["type"]))
    return {
        "value": mean(mark.score for _, mark in marked),
        "by": {
            "domain": {name: _entry(domains[name]) for name in DOMAINS.values() if name in domains},
            "type": {name: _entry(part) for name, part in types.items()},
        },
    }


def _entry(marked: Sequence[Marked]) -> dict[str, Any]:
    return {
        "accuracy": mean(mark.score for _, mark in marked),
        "n_questions": len(marked),
        "n_right": sum(mark.score == 1.0 for _, mark in marked),
    }


def upstream_table(
    questions: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """The original script's table of rows that hold an `answer` in place of a `response`: taken as they stand.

    Args:
        outputs: rows of `id`, `type` and `answer`, of the same ids as the questions.

    Returns:
        `n_right` and `n_questions` for each domain and `Overall`.
    """
    given = {str(output["id"]): str(output["answer"]) for output in outputs}
    table = {name: {"n_right": 0, "n_questions": 0} for name in (*DOMAINS.values(), "Overall")}
    for question in questions:
        text, gold = given[str(question["id"])], str(question["answer"])
        blank = question["type"] == BLANK
        right = holds(_normalize(text, gold), _normalize(gold, gold)) if blank else text == gold
        for name in (DOMAINS[str(question["category"])], "Overall"):
            table[name]["n_right"] += right
            table[name]["n_questions"] += 1
    return table
