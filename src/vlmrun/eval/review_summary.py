"""What follows from many reviews: means by category, and the data of the review page. Pure functions.

Source: specification eval-and-serve 2.9 (LLaVA's summarize_gpt_review and generate_webpage_data_from_table).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.eval.review import Row

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_STARTS = re.compile(rf"\s*{_NUMBER}[,\s]+{_NUMBER}")
_STARTS_UPSTREAM = re.compile(r"\s*\d+[,\s]+\d+")
_NAME = re.compile(r"\b(Assistant [12])\b")


@dataclass(frozen=True)
class Line:
    """A category of a summary.

    Args:
        relative: the second answer's mean in per cent of the first's; None when that is 0.
    """

    name: str
    relative: float | None
    first: float
    second: float
    count: int

    def text(self) -> str:
        """As the original script prints it."""
        relative = "nan" if self.relative is None else round(self.relative, 1)
        return f"{self.name} {relative} {round(self.first * 10, 1)} {round(self.second * 10, 1)}"


def summary(reviews: Iterable[Row], ignored: Iterable[Any] = (), *, upstream: bool = False) -> list[Line]:
    """Means by category and of `all`, sorted by name.

    Args:
        ignored: question ids that are left out.
        upstream: average unreadable verdicts in as -1, as the original script does; ours leaves them out.
    """
    left_out = {str(id) for id in ignored}
    parts: dict[str, list[Sequence[float]]] = defaultdict(list)
    for review in reviews:
        if str(review.get("question_id")) in left_out:
            continue
        pair = review["tuple"] if "tuple" in review else review["score"]
        if not upstream and (len(pair) != 2 or min(pair) < 0):
            continue
        parts["all"].append(pair)
        if "category" in review:
            parts[str(review["category"])].append(pair)
    return [_line(name, pairs) for name, pairs in sorted(parts.items())]


def _line(name: str, pairs: Sequence[Sequence[float]]) -> Line:
    first, second = (round(sum(pair[side] for pair in pairs) / len(pairs), 3) for side in (0, 1))
    return Line(name, second / first * 100 if first else None, first, second, len(pairs))


def set_name(file: str) -> str:
    """What a review file is called in a summary."""
    return file.removesuffix(".jsonl").removeprefix("gpt4_text_").removeprefix("gpt4_text_")


def is_wanted(file: str, version: str | None = None, words: Sequence[str] = ()) -> bool:
    """Whether a file of a folder is summarised: by the judge's version in its name, and words that must all be in it.

    Args:
        version: 0613, or 0314 for names without 0613.
    """
    if version is not None and ("0613" in file) != (version == "0613"):
        return False
    return file.endswith(".jsonl") and all(word in file for word in words)


def both_orders(straight: Row, swapped: Row) -> tuple[float, float] | None:
    """The mean of a verdict and of that with the answers exchanged; None unless both were read."""
    if min(straight["tuple"]) < 0 or min(swapped["tuple"]) < 0:
        return None
    one, two = straight["tuple"], swapped["tuple"]
    return (one[0] + two[1]) / 2, (one[1] + two[0]) / 2


def words_of(content: str, *, upstream: bool = False) -> str:
    """A review's text with the sides' names in bold, without a first line that starts with two numbers.

    Args:
        upstream: only two whole numbers count.
    """
    if (_STARTS_UPSTREAM if upstream else _STARTS).match(content):
        content = content.partition("\n")[2]
    return _NAME.sub(r"**\1**", content)


def page_data(
    questions: Sequence[Row],
    answers: Mapping[str, Mapping[str, str]],
    reviews: Mapping[str, Mapping[str, Row]],
    *,
    upstream: bool = False,
) -> dict[str, Any]:
    """What the review page shows.

    Args:
        answers: texts by model and question id; the one called `ours` is compared with each of the others.
        reviews: by model other than ours, and question id.
    """
    rows = []
    for question in questions:
        id = str(question["question_id"])
        judged = {model: by_id[id] for model, by_id in reviews.items() if id in by_id}
        rows.append(
            {
                "id": question["question_id"],
                "category": question.get("category", ""),
                "question": question["text"],
                "answers": {model: by_id[id] for model, by_id in answers.items() if id in by_id},
                "evaluations": {
                    model: words_of(str(each["content"]), upstream=upstream) for model, each in judged.items()
                },
                "scores": {model: list(each["tuple"]) for model, each in judged.items()},
            }
        )
    return {"questions": rows, "models": [model for model in answers if model != "ours"]}
