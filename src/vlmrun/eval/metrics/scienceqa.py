"""ScienceQA: the letter an answer names, accuracy over a whole split, and the GPT-4 combination scripts' counts.

Source: specification eval-and-serve 2.5 (LLaVA eval_science_qa.py and the two eval_science_qa_gpt4 scripts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.eval.metrics import options
from vlmrun.eval.metrics.base import UNANSWERED, Answered, Mark, Marked, Parity, Summary, UpstreamStops, as_score, mean

FAILED = "FAILED"
LETTERS = "ABCDE"

_IMAGE = "<image>"
_MISSING = {"text": FAILED, "prompt": "Unknown"}
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the dot is any character but a newline, as upstream has it


def parse(text: str) -> str:
    """The letter an answer names by the original script's rules, or `FAILED`."""
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return str(found[0]) if len(found) == 1 else FAILED


def index(letter: str, n_choices: int) -> int:
    """The choice's index; -1 for none of them."""
    return LETTERS.index(letter) if letter in tuple(LETTERS[:n_choices]) else -1


def wrong(gold: Mapping[str, Any]) -> str | None:
    """Choices are a list, and the answer is a place in it."""
    choices, answer = gold["choices"], str(gold["answer"])
    if not isinstance(choices, list) or not choices:
        return "`choices` is not a list of texts"
    if not answer.isdecimal() or int(answer) >= len(choices):
        return f"`answer` is {answer!r}, not the place of one of {len(choices)} choices, counted from 0"
    return None


def mark(row: Answered, parity: Parity) -> Mark:
    """Whether the answer names the choice with the index `answer`."""
    if row.text is None:
        return UNANSWERED
    n_choices = len(row.gold["choices"])
    if parity == "upstream":
        letter = parse(row.text)
        doubt = None if index(letter, n_choices) >= 0 else "the original script finds no letter"
        return Mark(as_score(index(letter, n_choices) == int(row.gold["answer"])), letter, doubt)
    said, doubt = options.read(row.text, options.options_of(row.gold))
    return Mark(as_score(said is not None and index(said, n_choices) == int(row.gold["answer"])), said, doubt)


def has_image(row: Answered, parity: Parity) -> bool:
    """Whether a question counts for image accuracy: by its image, or upstream by a tag in the stored prompt."""
    if parity == "upstream":
        return row.text is not None and _IMAGE in (row.prompt or "")
    return row.gold.get("image") is not None


def summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Accuracy, and that of questions with an image in both readings: of all of them, and of the answered ones."""
    pictured = [pair for pair in marked if has_image(pair[0], parity)]
    if parity == "upstream" and not pictured:
        raise UpstreamStops("no stored prompt holds an image tag, so that image accuracy divides by zero")
    of_answered = mean(mark.score for row, mark in pictured if row.text is not None)
    return {
        "value": mean(mark.score for _, mark in marked),
        "accuracy_image": mean(mark.score for _, mark in pictured),
        "accuracy_image_answered": of_answered,
        "n_image": len(pictured),
    }


def output_files(
    problems: Mapping[str, Mapping[str, Any]], ids: Sequence[str], answers: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The original script's two files, `output` and `result`, of one split.

    Args:
        answers: by problem id, each with `text` and `prompt`.
    """
    output: dict[str, Any] = {"correct": [], "incorrect": []}
    results: dict[str, int] = {}
    texts: dict[str, str] = {}
    for id in ids:
        answer = answers.get(id, _MISSING)
        letter = parse(str(answer["text"]))
        problem = problems[id]
        results[id] = index(letter, len(problem["choices"]))
        texts[id] = str(answer["text"])
        right = results[id] == problem["answer"]
        output["correct" if right else "incorrect"].append(_analysis(id, letter, problem, answer))
    correct = sum(results[id] == problems[id]["answer"] for id in ids)
    result = {
        "acc": correct / len(ids) * 100,
        "correct": correct,
        "count": len(ids),
        "results": results,
        "outputs": texts,
    }
    return output, result


def _analysis(id: str, letter: str, problem: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question_id": id,
        "parsed_ans": letter,
        "ground_truth": LETTERS[problem["answer"]],
        "question": answer["prompt"],
        "pred": answer["text"],
        "is_multimodal": _IMAGE in answer["prompt"],
    }


def spoken(text: str) -> str:
    """The letter of the one sentence `The answer is X.`, or `FAILED`: what the GPT-4 combination scripts read."""
    found = _SENTENCE.findall(text)
    return str(found[0]) if len(found) == 1 else FAILED


def combine(
    problems: Mapping[str, Mapping[str, Any]],
    ours: Mapping[str, str],
    gpt4: Mapping[str, str],
    requery: Mapping[str, str],
) -> dict[str, Any]:
    """Our answers beside GPT-4's, and GPT-4 asked again as a judge of both, each text by problem id.

    What is not read counts as wrong; upstream draws a choice at random. Where GPT-4's answer is not read,
    `gpt4_or_ours` takes ours; where the second question's is not, so does `requery`.

    Returns:
        Counts of right answers, `gpt4_unread`, and `results`: the index chosen for each problem.
    """
    counts = dict.fromkeys(("ours", "gpt4", "gpt4_or_ours", "requery", "either", "gpt4_unread"), 0)
    results: dict[str, int] = {}
    for id, problem in problems.items():
        n_choices, right = len(problem["choices"]), problem["answer"]
        mine, theirs = (index(spoken(texts[id]), n_choices) for texts in (ours, gpt4))
        again = spoken(requery.get(id, ""))
        unread = spoken(gpt4[id]) == FAILED
        results[id] = mine if again == FAILED else index(again, n_choices)
        counts["ours"] += mine == right
        counts["gpt4"] += theirs == right
        counts["gpt4_or_ours"] += (mine if unread else theirs) == right
        counts["requery"] += results[id] == right
        counts["either"] += right in (mine, theirs)
        counts["gpt4_unread"] += unread
    return {**counts, "n_questions": len(problems), "results": results}
