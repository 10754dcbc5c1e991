"""The files that evaluation servers take: pure functions from questions and answers to rows.

Source: specification eval-and-serve 2.3, 2.4, 2.7, 2.8 (the convert_*_for_* scripts of LLaVA and Bunny, MiniCPM's
DocVQA upload).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.eval.metrics import gqa
from vlmrun.eval.metrics.vqa_text import clean

Row = Mapping[str, Any]

_MMBENCH_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
_INTEGER = re.compile(r"-?\d{1,18}")
_LONGEST_CELL = 1 << 28  # characters: images stand in the table
_MMBENCH_PLACE = 6  # of the column `prediction`
_SHORT_TAIL = "Answer the question using a single word or phrase."
_SENTENCE_TAIL = "Answer the question directly with a short sentence or phrase."
_YES_NO_TAIL = " Please answer yes or no."


@dataclass(frozen=True)
class Made:
    """What a submission became.

    Args:
        missing: ids of questions without an answer, which the file fills in as its server wants it.
    """

    rows: Any
    missing: list[str]


def parse_lines(lines: Iterable[str]) -> tuple[list[Row], int]:
    """Answers of a JSONL file, and how many lines are not JSON objects with an id."""
    found: list[Row] = []
    n_broken = 0
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            n_broken += 1
            continue
        if isinstance(row, dict) and "question_id" in row:
            found.append(row)
        else:
            n_broken += 1
    return found, n_broken


def parse_tsv(text: str) -> list[dict[str, Any]]:
    """Rows of a table with a header: numbers where a whole column holds them, None for an empty cell."""
    csv.field_size_limit(_LONGEST_CELL)
    header, *lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    columns = [_typed([line[place] if place < len(line) else "" for line in lines]) for place in range(len(header))]
    return [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _typed(cells: list[str]) -> list[Any]:
    if cells and all(_INTEGER.fullmatch(cell) for cell in cells):
        return [int(cell) for cell in cells]
    return [cell or None for cell in cells]


def mmbench_lacks(rows: Sequence[Row]) -> list[str]:
    """Columns that MMBench's converter wants and the table does not have."""
    return [name for name in _MMBENCH_DROPPED if rows and name not in rows[0]]


def by_id(answers: Iterable[Row]) -> dict[str, Row]:
    """Answers by question; the last one to a question wins, as in every upstream script."""
    return {str(answer["question_id"]): answer for answer in answers}


def _missing(questions: Sequence[Row], answers: Mapping[str, Row], key: str = "question_id") -> list[str]:
    return [str(question[key]) for question in questions if str(question[key]) not in answers]


def vqav2(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """Every question of the split with its cleaned answer, an empty one where there is none."""
    found = by_id(answers)
    rows = [
        {"question_id": question["question_id"], "answer": _cleaned(found.get(str(question["question_id"])))}
        for question in questions
    ]
    return Made(rows, _missing(questions, found))


def _cleaned(answer: Row | None) -> str:
    return "" if answer is None else clean(str(answer["text"]))


def vizwiz(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """Image and cleaned answer. The server takes no file with holes, so that missing ones must be empty."""
    found = by_id(answers)
    rows = [
        {"image": question["image"], "answer": _cleaned(found.get(str(question["question_id"])))}
        for question in questions
    ]
    return Made(rows, _missing(questions, found))


def gqa_predictions(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """One prediction an answer, in the answers' order."""
    rows = [
        {"questionId": answer["question_id"], "prediction": gqa.prediction(str(answer["text"]))} for answer in answers
    ]
    return Made(rows, _missing(questions, by_id(answers)))


def mm_vet(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """An object of answers by `v1_<id>`."""
    rows = {f"v1_{answer['question_id']}": answer["text"] for answer in answers}
    return Made(rows, _missing(questions, by_id(answers)))


def seed(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """Question and prediction of every question that was answered."""
    found = by_id(answers)
    rows = [
        {"question_id": question["question_id"], "prediction": found[str(question["question_id"])]["text"]}
        for question in questions
        if str(question["question_id"]) in found
    ]
    return Made(rows, _missing(questions, found))


def docvqa(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """Question and answer, without an end-of-text mark that was decoded with it."""
    rows = [
        {"questionId": answer["question_id"], "answer": str(answer["text"]).replace("</s>", "")} for answer in answers
    ]
    return Made(rows, _missing(questions, by_id(answers)))


def mmbench(questions: Sequence[Row], answers: Sequence[Row]) -> Made:
    """Rows of the sheet, the header first: the table without its long columns, `prediction` as the seventh.

    Args:
        questions: rows of the TSV, all columns, None for an empty cell.
    """
    found = by_id(answers)
    columns = [name for name in (questions[0] if questions else ()) if name not in _MMBENCH_DROPPED]
    columns.insert(min(_MMBENCH_PLACE, len(columns)), "prediction")
    rows: list[list[Any]] = [list(columns)]
    for question in questions:
        answer = found.get(str(question["index"]))
        said = None if answer is None else answer["text"] or None  # an empty text is an empty cell
        rows.append([said if name == "prediction" else question[name] for name in columns])
    return Made(rows, _missing(questions, found, "index"))


def mme_lines(answers: Sequence[Row], truths: Mapping[tuple[str, str, str], str]) -> dict[str, str]:
    """One text per task: file, question, truth, answer, separated by tabs, as MME's calculation reads it.

    Args:
        truths: by category, file and question.

    Raises:
        KeyError: for a question that the ground truth does not have.
    """
    tasks: dict[str, list[str]] = {}
    for answer in answers:
        category, _, rest = str(answer["question_id"]).partition("/")
        file = rest.rsplit("/", 1)[-1].partition(".")[0] + ".txt"
        question = _mme_question(str(answer["prompt"]), category, file, truths)
        line = (file, question, truths[category, file, question], str(answer["text"]))
        tasks.setdefault(f"{category}.txt", []).append("\t".join(line) + "\n")
    return {name: "".join(lines) for name, lines in tasks.items()}


def _mme_question(prompt: str, category: str, file: str, truths: Mapping[tuple[str, str, str], str]) -> str:
    """The question as the ground truth has it: without the short-answer tail, with its yes-or-no one."""
    for tail in (_SHORT_TAIL, _SENTENCE_TAIL):
        prompt = prompt.replace(tail, "")
    prompt = prompt.strip()
    if "Please answer yes or no." not in prompt:
        prompt += _YES_NO_TAIL
    if (category, file, prompt) not in truths:
        prompt = prompt.replace(_YES_NO_TAIL, f" {_YES_NO_TAIL}")
    return prompt


def as_json(rows: Any, *, indent: int | None = None) -> str:
    """JSON as the servers' scripts wrote it, in ASCII."""
    return json.dumps(rows, indent=indent)


def as_lines(rows: Sequence[Row]) -> str:
    """JSONL in ASCII."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def chunk_bounds(n_items: int, n_chunks: int) -> list[tuple[int, int]]:
    """Start and stop of each share when a file is cut as LLaVA and Bunny cut it; shares past the end are empty."""
    size = -(-n_items // n_chunks) if n_items else 0
    return [(min(place * size, n_items), min((place + 1) * size, n_items)) for place in range(n_chunks)]


def even_bounds(n_items: int, n_chunks: int) -> list[tuple[int, int]]:
    """Start and stop of equal shares, the first ones longer by one (MiniCPM's sampler)."""
    size, more = divmod(n_items, n_chunks)
    starts = [place * size + min(place, more) for place in range(n_chunks + 1)]
    return list(itertools.pairwise(starts))
