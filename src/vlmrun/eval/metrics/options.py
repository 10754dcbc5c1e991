"""The letter of an option that an answer means.

Source: specification eval-and-serve 2.3, 2.8 and 2.12 (SEED's exact letter; vlmevalkit's inference for MMBench).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_KIT_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_NO_OPTION = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LEADING = re.compile(r"^[\s(\[*\"']*([A-Z])(?=[\s).\]:,*\"']|$)")
_SAID = re.compile(r"(?:answer|option|정답|답|答案|选)(?:\s+is|은|는|是)?\s*[:：]?\s*[(\[*]*([A-Z])(?![a-zA-Z])", re.I)


def read(text: str, options: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The option's letter, and why the reading is doubtful; (None, why) when none can be read.

    In this order: a letter at the start, a letter after `answer` or `option`, the only letter that stands alone, the
    only option whose whole text occurs.
    """
    stripped = text.strip()
    if not stripped:
        return None, "empty"
    if len(stripped) == 1 and stripped.upper() in options:
        return stripped.upper(), None if stripped in options else "lower case"
    said = list(dict.fromkeys(letter.upper() for letter in _SAID.findall(stripped)))
    if len(said) == 1 and said[0] in options:
        return said[0], None
    found = _LEADING.match(stripped)
    if found and found.group(1) in options and not _is_article(found.group(1), stripped):
        return found.group(1), "several letters" if len(_alone(stripped, options)) > 1 else None
    alone = [letter for letter in _alone(stripped, options) if not _is_article(letter, stripped)]
    if len(alone) == 1:
        return alone[0], "a letter inside a sentence"
    texts = [letter for letter, option in options.items() if option and option.lower() in stripped.lower()]
    if len(texts) == 1:
        return texts[0], "by the option's text"
    return None, "several options" if len(alone) > 1 or len(texts) > 1 else "no option"


def _alone(text: str, options: Mapping[str, str]) -> list[str]:
    return [letter for letter in options if re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z'])", text)]


def _is_article(letter: str, text: str) -> bool:
    return letter == "A" and re.match(r"^\s*A\s+[a-z]", text) is not None


def options_of(gold: Mapping[str, Any]) -> dict[str, str]:
    """Options by letter: columns A, B, ..; `choices` as a list; or SEED's choice_a, choice_b, .."""
    if isinstance(gold.get("choices"), Sequence) and not isinstance(gold["choices"], str) and gold["choices"]:
        return {LETTERS[place]: str(choice) for place, choice in enumerate(gold["choices"][: len(LETTERS)])}
    columns = {letter: gold.get(letter, gold.get(f"choice_{letter.lower()}")) for letter in LETTERS}
    found = {letter: str(value) for letter, value in columns.items() if value not in (None, "")}
    if found:
        return found
    named = [letter for letter, value in columns.items() if value is not None]
    return dict.fromkeys(named or "ABCD", "")


def letter(row: Answered, parity: Parity) -> Mark:
    """The letter of `answer` (SEED); upstream's script wants the text to be the letter and nothing else."""
    if row.text is None:
        return UNANSWERED
    gold = str(row.gold["answer"]).strip()
    if parity == "upstream":
        right = row.text == gold
        return Mark(as_score(right), row.text, None if len(row.text) == 1 else "not a letter alone")
    said, doubt = read(row.text, options_of(row.gold))
    return Mark(as_score(said == gold.upper()), said, doubt)


def kit(row: Answered, parity: Parity) -> Mark:
    """The letter of `answer` by vlmevalkit's inference under upstream parity (MMBench), by `read` otherwise."""
    if row.text is None:
        return UNANSWERED
    if parity == "strict":
        return letter(row, parity)
    said = infer(row.text, options_of(row.gold))
    return Mark(as_score(said == str(row.gold["answer"]).strip()), said or None, None if said else "no option")


def infer_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The single option letter among the answer's words; Z for a refusal; None when it is not single."""
    if any(refusal in text for refusal in _REFUSALS):
        return _NO_OPTION
    words = text.translate(_KIT_SIGNS).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0]
    return _NO_OPTION if not found and _NO_OPTION in words else None


def infer_text(text: str, options: Mapping[str, str]) -> str | None:
    """The single option whose text the answer holds."""
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


def infer(text: str, options: Mapping[str, str]) -> str | None:
    """By letter, else by text."""
    return infer_letter(text, options) or infer_text(text, options)


def by_type(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy, also by question type and for images and videos apart (SEED's `question_type` and `data_type`)."""
    types, kinds = groups(marked, _type), groups(marked, _kind)
    if parity == "upstream":
        _refuse_as_upstream(marked)
    return {
        "value": mean(mark.score for _, mark in marked),
        **{f"accuracy_{kind}": mean(mark.score for _, mark in part) for kind, part in sorted(kinds.items())},
        "by": {
            "question type": {
                name: {"accuracy": mean(mark.score for _, mark in part), "n_questions": len(part)}
                for name, part in types.items()
            }
        },
    }


def _type(pair: Marked) -> str:
    return str(pair[0].gold.get("question_type", pair[0].category))


def _kind(pair: Marked) -> str:
    return str(pair[0].gold.get("data_type", "image"))


def _refuse_as_upstream(marked: Sequence[Marked]) -> None:
    """What ends SEED's script: it goes through all rows, then images, then videos, and divides within each type."""
    kinds = groups(marked, _kind)
    if not {"image", "video"} <= set(kinds):
        raise UpstreamStops("the file lacks questions about images or about videos")
    for part in (marked, *kinds.values()):
        for name, answers in groups(part, _type).items():
            if not any(mark.score for _, mark in answers):
                raise UpstreamStops(f"no right answer of type {name}, over all, images or videos")
    missing = [row.id for row, _ in marked if row.text is None]
    if missing:
        raise UpstreamStops(f"{len(missing)} questions without an answer, {missing[0]} the first")


def round_trip(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy; and, when questions were asked once a rotation of their options, of those right in every rotation."""
    questions = groups(marked, lambda pair: str(pair[0].gold.get("index", pair[0].id)))
    rotated = any(len(part) > 1 for part in questions.values())
    strict = mean(as_score(all(mark.score == 1.0 for _, mark in part)) for part in questions.values())
    return {
        "value": strict if rotated else mean(mark.score for _, mark in marked),
        **({"accuracy_single": mean(mark.score for _, mark in marked)} if rotated else {}),
    }
