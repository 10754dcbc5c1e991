"""Soft accuracy against several people's answers: VQAv2, VizWiz, TextVQA, and ST-VQA's single match.

Source: specification eval-and-serve 2.2 and 2.12 (LLaVA's m4c evaluator, MiniCPM's vqaeval and its vlmevalkit copy).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Parity, UpstreamStops, as_score
from vlmrun.eval.metrics.vqa_text import clean

_PEOPLE = 10
_OCR_LINE = "Reference OCR token: "
_OCR_QUESTION = re.compile(r"OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)


def answer_scores(answers: Sequence[str], *, exact: bool = False) -> dict[str, float]:
    """What each distinct cleaned answer is worth: agreement among the other people, three of whom are enough."""
    cleaned = [clean(answer, exact=exact) for answer in answers]
    counts = Counter(cleaned)
    return {unique: _leave_one_out(unique, cleaned) for unique in counts}


def _leave_one_out(answer: str, cleaned: Sequence[str]) -> float:
    agreement = [min(1.0, (sum(other == answer for other in cleaned) - (own == answer)) / 3) for own in cleaned]
    return sum(agreement) / len(agreement)


def soft(row: Answered, parity: Parity) -> Mark:
    """The share of people that an answer agrees with, from the question's `answers`."""
    if row.text is None:
        return UNANSWERED
    answers = [str(answer) for answer in row.gold["answers"]]
    exact = parity == "strict"
    if not exact and len(answers) != _PEOPLE:
        raise UpstreamStops(f"question {row.id} has {len(answers)} answers, not {_PEOPLE}")
    read = clean(row.text, exact=exact)
    return Mark(answer_scores(answers, exact=exact).get(read, 0.0), read, _long(read))


def _long(read: str) -> str | None:
    if not read:
        return "nothing is left of it after the clean-up"
    return "longer than a short answer" if len(read.split()) > 10 else None


def question_of_prompt(prompt: str) -> str:
    """The question of a stored TextVQA prompt, lower-cased: TextVQA's answers are joined by image and question.

    Raises:
        UpstreamStops: for a prompt of none of the three forms.
    """
    if prompt.startswith("OCR tokens: "):
        found = _OCR_QUESTION.search(prompt)
        if found is None:
            raise UpstreamStops("a prompt with OCR tokens holds no `Question: ... Short answer:`")
        return found.group(1).lower()
    lines = prompt.split("\n")
    if _OCR_LINE in prompt and len(lines) == 3:
        return lines[1 if lines[0].startswith(_OCR_LINE) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise UpstreamStops(f"a prompt of {len(lines)} lines holds no question that the original script finds")


def textvqa_rows(annotations: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[Answered]:
    """TextVQA's answers with the people's, joined by image and question: its answer files carry no question id.

    Raises:
        UpstreamStops: for a prompt whose question cannot be found.
        KeyError: for a question that is not annotated.
    """
    gold = {(row["image_id"], str(row["question"]).lower()): row for row in annotations}
    return [
        Answered(
            id=f"{answer['question_id']}/{place}",
            gold=gold[answer["question_id"], question_of_prompt(str(answer["prompt"]))],
            text=str(answer["text"]),
            prompt=str(answer["prompt"]),
            image=str(answer["question_id"]),
        )
        for place, answer in enumerate(answers)
    ]


def minicpm_soft(text: str, answers: Sequence[str]) -> float:
    """MiniCPM's soft score: the same agreement over any number of answers, with the shorter clean-up."""
    read = clean(text, whole=False)
    cleaned = [clean(answer, whole=False) for answer in answers]
    return _leave_one_out(read, cleaned)


def kit_line(answer: str, prediction: str, method: str) -> tuple[list[float], str]:
    """Matches of a prediction with each answer of a vlmevalkit table's cell, and the prediction as it was read.

    Args:
        answer: one answer, or several written as a list.
        method: `vqa_score` (agreement), `accuracy` (equal but for case), or `other` (equal once cleaned).
    """
    answers = _listed(answer)
    if method == "accuracy":
        read = prediction.strip()
        return [as_score(each.strip().lower() == read.lower()) for each in answers], read
    read = clean(prediction, whole=False)
    cleaned = [clean(each, whole=False) for each in answers]
    if method == "vqa_score":
        others = [sum(item == read for item in cleaned) - (own == read) for own in cleaned]
        return [min(1.0, count / 3) for count in others], read
    return [as_score(each == read) for each in cleaned], read


def _listed(cell: str) -> list[str]:
    if cell.startswith("[") and cell.endswith("]"):
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return [cell]
        if isinstance(value, list):
            return [str(item) for item in value]
    return [cell]
