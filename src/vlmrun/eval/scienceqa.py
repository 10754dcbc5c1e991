"""Scoring answers to ScienceQA: which letter an answer means, and how many are right. Pure functions.

Source: haotian-liu/LLaVA llava/eval/eval_science_qa.py, as the family's specification 6.3 describes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.data.prepare.scienceqa import OPTIONS
from vlmrun.data.sample import IMAGE_TAG

FAILED = "FAILED"

_SENTENCE = re.compile(r"The answer is ([A-Z])\.")
# Upstream's dot stands for any character, so that `The answer is A` with anything behind it counts.
_SENTENCE_OF_UPSTREAM = re.compile(r"The answer is ([A-Z]).")


def letter(text: str, *, upstream: bool = False) -> str:
    """The option that an answer names, or `FAILED`.

    A letter alone, a letter before a full stop and a space, or the one sentence `The answer is X.`.

    Args:
        upstream: read the sentence as the original script did, any character counting as its full stop.
    """
    stripped = text if upstream else text.strip()
    if len(stripped) == 1 and stripped in OPTIONS:
        return stripped
    if len(stripped) >= 3 and stripped[0] in OPTIONS and stripped[1:3] == ". ":
        return stripped[0]
    found = (_SENTENCE_OF_UPSTREAM if upstream else _SENTENCE).findall(stripped)
    return str(found[0]) if len(found) == 1 else FAILED


def score(
    problems: Mapping[str, Mapping[str, Any]],
    ids: Sequence[str],
    answers: Mapping[str, Mapping[str, Any]],
    *,
    upstream: bool = False,
) -> dict[str, Any]:
    """Accuracy over all problems of a split; one that was not answered counts as wrong.

    Args:
        problems: content of problems.json.
        ids: the split's problems.
        answers: by problem id, each with `text`; and `prompt` as upstream's answer files have it.

    Returns:
        `acc`, `correct`, `count`, the same with `image_` for problems with a picture, all in per cent of answers;
        `unreadable` and `unanswered` counts; `results`: the chosen index by id (-1: none); `outputs`: texts by id.
    """
    results: dict[str, int] = {}
    outputs: dict[str, str] = {}
    right: set[str] = set()
    seen = {id for id in ids if _has_picture(problems[id], answers.get(id))}
    for id in ids:
        outputs[id] = str(answers[id]["text"]) if id in answers else FAILED
        results[id] = _index(letter(outputs[id], upstream=upstream), len(problems[id]["choices"]))
        if results[id] == problems[id]["answer"]:
            right.add(id)
    return {
        **_share("", len(right), len(ids)),
        **_share("image_", len(right & seen), len(seen)),
        "unreadable": sum(results[id] == -1 and id in answers for id in ids),
        "unanswered": sum(id not in answers for id in ids),
        "results": results,
        "outputs": outputs,
    }


def _index(found: str, n_choices: int) -> int:
    return OPTIONS.index(found) if found in OPTIONS[:n_choices] else -1


def _has_picture(problem: Mapping[str, Any], answer: Mapping[str, Any] | None) -> bool:
    """Upstream looks for a tag in the prompt kept with the answer; ours falls back on the problem itself."""
    if answer is not None and "prompt" in answer:
        return IMAGE_TAG in str(answer["prompt"])
    return problem.get("image") is not None


def _share(prefix: str, correct: int, count: int) -> dict[str, float | int | None]:
    share = 100 * correct / count if count else None
    return {f"{prefix}acc": share, f"{prefix}correct": correct, f"{prefix}count": count}
