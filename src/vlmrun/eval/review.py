"""A judge's review of two answers to one question: what it is asked, how its verdict is read, what follows from many.

Source: specification eval-and-serve 2.9 (LLaVA's eval_gpt_review_bench, eval_gpt_review_visual, eval_gpt_review,
summarize_gpt_review and generate_webpage_data_from_table). Pure functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmrun.errors import DataError, Problem

Kind = Literal["bench", "visual", "text"]
Row = Mapping[str, Any]

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_UNREADABLE = (-1, -1)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_PAIR = re.compile(rf"^\s*\[?\(?\s*({_NUMBER})(?:\s*/\s*10)?\s*[,;\s]\s*({_NUMBER})(?:\s*/\s*10)?\s*\)?\]?\s*$")
_LEAST, _MOST = 0.0, 10.0
_MAX_LISTED = 20


@dataclass(frozen=True)
class Asked:
    """One question put to the judge.

    Args:
        number: of the question, from 1.
        swapped: the second answer was shown first, to see whether the order decides.
    """

    number: int
    question_id: Any
    answer_ids: tuple[Any, Any]
    category: str | None
    content: str
    swapped: bool = False

    def messages(self) -> list[dict[str, str]]:
        """The conversation that is sent."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.content}]

    def row(self, text: str, scores: Sequence[float] | None) -> dict[str, Any]:
        """A row of reviews.jsonl; None: the verdict could not be read."""
        named = {} if self.category is None else {"category": self.category}
        return {
            "id": self.number,
            "question_id": self.question_id,
            "answer1_id": self.answer_ids[0],
            "answer2_id": self.answer_ids[1],
            **named,
            "content": text,
            "tuple": list(_UNREADABLE if scores is None else scores),
            **({"swapped": True} if self.swapped else {}),
        }


@dataclass(frozen=True)
class Bench:
    """Everything that reviews are made of.

    Args:
        kind: bench (a caption of the image), visual (captions and boxes) or text (no context).
        context: rows by image, of `caption`, or of `captions` and `instances`.
        rules: by name, each with `role` and `prompt`.
    """

    kind: Kind
    questions: Sequence[Row]
    first: Sequence[Row]
    second: Sequence[Row]
    rules: Mapping[str, Row]
    context: Sequence[Row] = ()
    _images: dict[str, Row] = field(default_factory=dict)

    def ask(self, *, swapped: bool = False) -> list[Asked]:
        """A request for every question, answers joined by id.

        Raises:
            DataError: with every question that has no rule, no context, or no answer on one of the sides.
        """
        sides = [{str(row["question_id"]): row for row in side} for side in (self.first, self.second)]
        images = {str(row["image"]): row for row in self.context}
        problems: list[Problem] = []
        found: list[Asked] = []
        for number, question in enumerate(self.questions, start=1):
            try:
                found.append(self._one(number, question, sides, images, swapped))
            except KeyError as error:
                where = f"question {question.get('question_id')}"
                problems.append(
                    Problem(f"no {error.args[0]}", where, "use questions, answers, context and rules of one set")
                )
        if problems:
            more = len(problems) - _MAX_LISTED
            raise DataError([*problems[:_MAX_LISTED], *([Problem(f"{more} more")] if more > 0 else [])])
        return found

    def _one(
        self,
        number: int,
        question: Row,
        sides: Sequence[Mapping[str, Row]],
        images: Mapping[str, Row],
        swapped: bool,
    ) -> Asked:
        id = str(question["question_id"])
        answers = []
        for place, side in enumerate(sides, start=1):
            if id not in side:
                raise KeyError(f"answer {place}")
            answers.append(side[id])
        name = str(question.get("category", "default"))
        category = f"llava_bench_{name}" if self.kind == "bench" else name
        rule = self.rules.get(category) or (self.rules.get("default") if self.kind == "text" else None)
        if rule is None:
            raise KeyError(f"rule {category!r}")
        if "answer_id" not in answers[1]:
            raise KeyError("answer_id of answer 2")
        shown = answers[::-1] if swapped else answers
        return Asked(
            number=number,
            question_id=question["question_id"],
            answer_ids=(answers[0].get("answer_id", answers[0]["question_id"]), answers[1]["answer_id"]),
            category=category,
            content=_content(self._context(question, images), question, shown, rule),
            swapped=swapped,
        )

    def _context(self, question: Row, images: Mapping[str, Row]) -> str | None:
        if self.kind == "text":
            return None
        held = images.get(str(question.get("image")))
        if held is None:
            raise KeyError(f"context of image {question.get('image')!r}")
        if self.kind == "bench":
            return _lines(held["caption"])
        boxes = [f"{each['category']}: {each['bbox']}" for each in held["instances"]]
        return _lines(held["captions"]) + "\n\n" + "\n".join(boxes)


def _lines(text: Any) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _content(context: str | None, question: Row, answers: Sequence[Row], rule: Row) -> str:
    role = rule["role"]
    head = "" if context is None else f"[Context]\n{context}\n\n"
    sides = "".join(
        f"[{role} {place}]\n{answer['text']}\n\n[End of {role} {place}]\n\n"
        for place, answer in enumerate(answers, start=1)
    )
    return f"{head}[Question]\n{question['text']}\n\n{sides}[System]\n{rule['prompt']}\n\n"


def scores_upstream(text: str) -> tuple[float, float]:
    """The pair of the first line as the original script reads it; (-1, -1) for anything else."""
    parts = text.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return _UNREADABLE
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return _UNREADABLE


def scores(text: str) -> tuple[float, float] | None:
    """Two numbers from 0 to 10 on the first line that has text, or None: what cannot be read is no score."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    found = _PAIR.match(first)
    if found is None:
        return None
    pair = float(found.group(1)), float(found.group(2))
    return pair if all(math.isfinite(each) and _LEAST <= each <= _MOST for each in pair) else None
