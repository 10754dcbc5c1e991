"""MME: two yes-or-no questions an image, points by task.

Source: specification eval-and-serve 2.7 and 2.12 (MME's calculation.py, LLaVA's converter, vlmevalkit's table).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vlmrun.eval.metrics import yes_no
from vlmrun.eval.metrics.base import Answered, Mark, Marked, Parity, Summary, UpstreamStops, groups

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_FIRST = 4  # characters in which MME's script looks for a word


def mme_text(text: str) -> str:
    """Yes, no or other as MME's script has it, from the first four characters of the lower-cased answer."""
    lowered = text.lower()
    if lowered in ("yes", "no"):
        return lowered
    start = lowered[:_FIRST]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme(row: Answered, parity: Parity) -> Mark:
    """MME: the label is the question's `answer`."""
    # The converted file's line ends in a newline, so that a one-word answer is never the exact word.
    return yes_no.marked(row, parity, lambda text: mme_text(f"{text}\n"))


def mme_scores(pairs: Mapping[str, Sequence[tuple[bool, bool]]]) -> dict[str, float]:
    """A task's score from 0 to 200, of both questions on each image: accuracy plus images with both right, per cent."""
    return {
        task: 100 * fmean(right for pair in images for right in pair) + 100 * fmean(all(pair) for pair in images)
        for task, images in pairs.items()
        if images
    }


def mme_summary(marked: Sequence[Marked], parity: Parity) -> Summary:
    """Perception (of 2000) and cognition (of 800), and every task (of 200)."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    odd: list[str] = []
    for (category, image), part in groups(marked, lambda pair: (pair[0].category, pair[0].image)).items():
        if len(part) != 2:
            odd.append(f"{category}/{image}")
        if parity == "upstream" and any(_breaks(row.text) for row, _ in part):
            raise UpstreamStops(f"an answer of {category} holds a line break or a tab: upstream drops its line")
        rights = [mark.score == 1.0 for _, mark in part]
        for start in range(0, len(rights) - 1, 2):
            pairs.setdefault(category, []).append((rights[start], rights[start + 1]))
    if parity == "upstream" and odd:
        raise UpstreamStops(f"images without exactly two questions: {', '.join(sorted(odd)[:3])}")
    missing = [task for task in (*PERCEPTION, *COGNITION) if task not in pairs]
    if parity == "upstream" and missing:
        raise UpstreamStops(f"no answers for {', '.join(missing)}")
    tasks = mme_scores(pairs)
    perception = sum(tasks.get(task, 0.0) for task in PERCEPTION)
    cognition = sum(tasks.get(task, 0.0) for task in COGNITION)
    return {
        "value": perception + cognition,
        "perception": perception,
        "cognition": cognition,
        "tasks": tasks,
        "missing_tasks": missing,
        "images_without_two_questions": sorted(odd),
    }


def _breaks(text: str | None) -> bool:
    return text is not None and ("\n" in text or "\t" in text)


def kit_mme(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """vlmevalkit's MME table of rows with `category`, `image_path` and `score`; cognition is called reasoning there."""
    pairs: dict[str, list[tuple[bool, ...]]] = {}
    for (category, _), part in groups(rows, lambda row: (row["category"], row["image_path"])).items():
        pairs.setdefault(category, []).append(tuple(bool(row["score"]) for row in part))
    tasks = {
        task: 100 * fmean(right for pair in images for right in pair) + 100 * fmean(sum(pair) == 2 for pair in images)
        for task, images in pairs.items()
    }
    return {
        "perception": sum(tasks.get(task, 0.0) for task in PERCEPTION),
        "reasoning": sum(tasks.get(task, 0.0) for task in COGNITION),
        **tasks,
    }


def mme_of_files(files: Mapping[str, str]) -> dict[str, float]:
    """Task scores of converted files, as MME's calculation reads them: lines of four parts, two by two.

    Raises:
        UpstreamStops: for a task without a file, or two lines that are not of one image.
    """
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for task in (*PERCEPTION, *COGNITION):
        if f"{task}.txt" not in files:
            raise UpstreamStops(f"no file {task}.txt")
        parts = [line.split("\t") for line in files[f"{task}.txt"].splitlines(keepends=True)]
        whole = [part for part in parts if len(part) == 4]
        for first, second in zip(whole[::2], whole[1::2], strict=False):
            if first[0] != second[0]:
                raise UpstreamStops(f"{task}: {first[0]} and {second[0]} are paired")
            rights = [mme_text(part[3]) == part[2].lower() for part in (first, second)]
            pairs.setdefault(task, []).append((rights[0], rights[1]))
        if len(whole) % 2:
            raise UpstreamStops(f"{task}: a line is left without its second one")
    return mme_scores(pairs)
