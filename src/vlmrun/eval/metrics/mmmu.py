"""MMMU: the option or the open answer that a text means, and accuracy by subject and domain.

Source: specification eval-and-serve 2.10 (Bunny's eval/mmmu).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.eval.metrics import options
from vlmrun.eval.metrics.base import (
    UNANSWERED,
    Answered,
    Mark,
    Marked,
    Parity,
    Summary,
    as_score,
    groups,
    mean,
)
from vlmrun.eval.metrics.open_answers import ENGLISH, Value, holds, number, numbers, phrases, unique

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
OPEN_TYPES = ("open", "short-answer")

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_WORDS = 5  # with more, an option's text is looked for too


def parse_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """The option's letter that comes last in the text, or None: upstream then draws one at random.

    Args:
        choices: option texts by letter.
    """
    for sign in _ENDS:
        text = text.strip(sign)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in choices}
        if any(place >= 0 for place in places.values()):
            return _last(places)
    if len(text.split()) > _WORDS:
        lowered = text.lower()
        places = {letter: lowered.rfind(option.lower()) for letter, option in choices.items()}
        if any(place >= 0 for place in places.values()):
            return _last(places)
    return None


def _last(places: Mapping[str, int]) -> str:
    return max(places, key=lambda letter: places[letter])


def normalize(text: str) -> list[Value]:
    """A number to two decimals, or the text in lower case; a single sign with a space before or behind it."""
    text = text.strip()
    value = number(text)
    if value is not None:
        return [value]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def parse_open(text: str) -> list[Value]:
    """Every phrase and number that may be the answer."""
    found = phrases(text.strip().strip(".").lower(), ENGLISH)
    found = found + [written for phrase in found for written in numbers(phrase, ENGLISH)]
    return unique(value for each in found for value in normalize(each))


def open_right(gold: str | Sequence[str], text: str) -> bool:
    """Whether an open answer holds the gold, or one of them."""
    golds = [gold] if isinstance(gold, str) else [str(each) for each in gold]
    return holds(parse_open(text), [value for each in golds for value in normalize(each)])


def is_open(gold: Mapping[str, Any]) -> bool:
    """Whether a question has no options."""
    return str(gold.get("question_type", "multiple-choice")) in OPEN_TYPES


def mark(row: Answered, parity: Parity) -> Mark:
    """A choice or an open answer, by the question's type. Nothing found counts as wrong; upstream would guess."""
    if row.text is None:
        return UNANSWERED
    gold = row.gold["answer"]
    if is_open(row.gold):
        candidates = parse_open(row.text)
        read = str(candidates[0]) if len(candidates) == 1 else " | ".join(map(str, candidates))
        return Mark(as_score(open_right(gold, row.text)), read, None if row.text.strip() else "empty")
    choices = options.options_of(row.gold)
    if parity == "upstream":
        said = parse_choice(row.text, choices)
        return Mark(as_score(said == gold), said, None if said else "the original script guesses here")
    said, doubt = options.read(row.text, choices)
    return Mark(as_score(said == gold), said, doubt)


def subject_of(id: str) -> str:
    """The subject of a key such as `validation_Art_Theory_12`."""
    return id.split("_", 1)[-1].rsplit("_", 1)[0]


def summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy overall, by domain and by subject; how many were not read, and what guessing those would be worth.

    Upstream's denominator is what was answered.
    """
    counted = [pair for pair in marked if parity == "strict" or pair[0].text is not None]
    unread = [row for row, mark in counted if mark.read_as is None and not is_open(row.gold) and row.text is not None]
    value = mean(mark.score for _, mark in counted)
    guesses = sum(1 / len(options.options_of(row.gold)) for row in unread)
    return {
        "value": value,
        "n_unread_choices": len(unread),
        "value_with_guessing": None if value is None else value + guesses / len(counted),
        "by": {"domain and subject": _table(counted)},
    }


def _table(marked: Sequence[Marked]) -> dict[str, dict[str, Any]]:
    subjects = groups(marked, lambda pair: str(pair[0].gold.get("subject") or subject_of(pair[0].id)))
    table = {}
    for domain, names in DOMAINS.items():
        parts = {name: subjects[name] for name in names if name in subjects}
        if parts:
            table[f"Overall-{domain}"] = _entry([pair for part in parts.values() for pair in part])
            table.update({name: _entry(part) for name, part in parts.items()})
    return table


def _entry(marked: Sequence[Marked]) -> dict[str, Any]:
    return {"accuracy": mean(mark.score for _, mark in marked), "n_questions": len(marked)}


def upstream_table(
    outputs: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The original script's printed object, and the subjects it skips.

    Args:
        outputs: by key; what is not an option letter counts as it stands.
        answers: by key, each with `question_type` and `ground_truth`.
    """
    rights: dict[str, list[bool]] = {}
    for key, text in outputs.items():
        answer = answers[key]
        gold = answer["ground_truth"]
        right = text == gold if answer["question_type"] == "multiple-choice" else open_right(gold, text)
        rights.setdefault(subject_of(key), []).append(right)
    result: dict[str, Any] = {}
    for domain, names in DOMAINS.items():
        listed = [name for name in names if name in rights]
        result[f"Overall-{domain}"] = _rounded([right for name in listed for right in rights[name]])
        result.update({name: _rounded(rights[name]) for name in listed})
    known = [name for names in DOMAINS.values() for name in names]
    result["Overall"] = _rounded([right for name in known for right in rights.get(name, [])])
    return result, sorted(name for name in known if name not in rights)


def _rounded(rights: Sequence[bool]) -> dict[str, Any]:
    return {"num": len(rights), "acc": round(sum(rights) / len(rights), 3) if rights else 0}
