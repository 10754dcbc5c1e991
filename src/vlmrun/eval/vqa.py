"""Scores of answered questions: pure functions on the rows of answers.jsonl."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmrun.data.sample import same_answer
from vlmrun.eval import statistics

UNSEEN = "unseen"  # the split of attribute combinations that no training image has

Row = Mapping[str, Any]
_RIGHT = 0.5


def score(answers: Sequence[Row], control: Sequence[Row] = (), blind: Sequence[Row] = ()) -> dict[str, Any]:
    """Exact match, beside what guessing and looking at the wrong image reach.

    Args:
        answers: rows with `expected`, `answer`, `category` and `split`, and `also_expected` where several answers are
            right.
        control: rows of the same questions asked with other questions' images.
        blind: rows of the same questions asked without images.

    Returns:
        `seen` (all splits but `unseen`) and `unseen`, each None or a group with `n_questions`, `accuracy`, its 95 %
        `interval`, `chance`, `shuffled` and the same (without interval) per category, and `blind` where that was asked;
        `splits`: a group for each split.
    """
    unscored = sum(not row["expected"] for row in answers)
    answers = [row for row in answers if row["expected"]]
    control = [row for row in control if row["expected"]]
    by_split = _groups(answers, "split")
    control_by_split = _groups(control, "split")
    splits = {name: _group(rows, control_by_split.get(name, [])) for name, rows in sorted(by_split.items())}
    seen, unseen = _seen(answers, control, splits), splits.get(UNSEEN)
    for group, is_unseen in ((seen, False), (unseen, True)):
        rows = [row for row in blind if row["expected"] and (row["split"] == UNSEEN) is is_unseen]
        if group is not None and rows:
            group["blind"] = _share(rows)
    return {
        "n_questions": len(answers) + unscored,
        **({"n_without_answer": unscored} if unscored else {}),
        "seen": seen,
        "unseen": unseen,
        "splits": splits,
    }


def _seen(
    answers: Sequence[Row], control: Sequence[Row], splits: Mapping[str, dict[str, Any] | None]
) -> dict[str, Any] | None:
    """All splits but `unseen` as one group; where there is one such split, that: an interval takes a second."""
    names = [name for name in splits if name != UNSEEN]
    if len(names) == 1:
        return splits[names[0]]
    return _group(
        [row for row in answers if row["split"] != UNSEEN], [row for row in control if row["split"] != UNSEEN]
    )


def is_match(row: Row) -> bool:
    """Whether a row's answer is right: by its set's metric where it has one, else by exact match."""
    if isinstance(row.get("score"), int | float):
        return bool(row["score"] >= _RIGHT)
    return any(same_answer(row["answer"], each) for each in _expected(row))


def _expected(row: Row) -> list[str]:
    """All answers that are right."""
    return [row["expected"], *row.get("also_expected", ())]


def _plain(text: str) -> str:
    return text.strip().lower()


def _group(rows: Sequence[Row], control: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    control_by_category = _groups(control, "category")
    categories: dict[str, dict[str, Any]] = {
        name: {
            "n_questions": len(part),
            "accuracy": _share(part),
            "chance": _chance(part),
            "shuffled": _share(control_by_category.get(name, [])),
        }
        for name, part in sorted(_groups(rows, "category").items())
    }
    chance = sum(part["chance"] * part["n_questions"] for part in categories.values()) / len(rows)
    return {
        "n_questions": len(rows),
        "accuracy": _share(rows),
        "interval": _interval(rows),
        "chance": chance,
        "shuffled": _share(control),
        "categories": categories,
    }


def _interval(rows: Sequence[Row]) -> list[float] | None:
    """95 %, with images drawn as wholes; None where all questions are about one image."""
    images = [row.get("image") or str(place) for place, row in enumerate(rows)]
    found = statistics.interval([float(is_match(row)) for row in rows], images)
    return None if found is None else [found.low, found.high]


def _groups(rows: Iterable[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return dict(found)


def _share(rows: Sequence[Row]) -> float | None:
    return sum(is_match(row) for row in rows) / len(rows) if rows else None


def _chance(rows: Sequence[Row]) -> float:
    """What always giving the most frequent answer reaches."""
    right = Counter(text for row in rows for text in {_plain(each) for each in _expected(row)})
    return right.most_common(1)[0][1] / len(rows)
