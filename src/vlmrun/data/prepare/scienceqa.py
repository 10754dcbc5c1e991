"""ScienceQA -> LLaVA JSON: a question with its context and choices, and an answer with or without its reasons.

Source: haotian-liu/LLaVA scripts/convert_sqa_to_llava.py and convert_sqa_to_llava_base_prompt.py (what is written, and
the names of the formats); the family's specification 6.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.data.sample import IMAGE_TAG
from vlmrun.errors import DataError, suggest

OPTIONS = "ABCDE"

_QUESTION, _CONTEXT, _CHOICES = "Question: {question}", "Context: {context}", "Options: {choices}"
_BECAUSE = "BECAUSE: {%s}"
_INPUTS = {
    "CQM": (_CONTEXT, _QUESTION, _CHOICES),
    "QCM": (_QUESTION, _CONTEXT, _CHOICES),
    "QCML": (_QUESTION, _CONTEXT, _CHOICES, _BECAUSE % "lecture"),
    "QCME": (_QUESTION, _CONTEXT, _CHOICES, _BECAUSE % "solution"),
    "QCMLE": (_QUESTION, _CONTEXT, _CHOICES, _BECAUSE % "lecture" + " {solution}"),
    "QCLM": (_QUESTION, _CONTEXT, _BECAUSE % "lecture", _CHOICES),
    "QCEM": (_QUESTION, _CONTEXT, _BECAUSE % "solution", _CHOICES),
    "QCLEM": (_QUESTION, _CONTEXT, _BECAUSE % "lecture" + " {solution}", _CHOICES),
}
_QUESTION_MARK, _ANSWER_MARK = "Question: ", "Answer: "
_ANSWER = "The answer is {answer}."
_OUTPUTS = {
    "A": _ANSWER,
    "AL": _ANSWER + " BECAUSE: {solution}",  # upstream's letters: L gives the solution after an answer, E the lecture
    "AE": _ANSWER + " BECAUSE: {lecture}",
    "ALE": _ANSWER + " BECAUSE: {lecture} {solution}",
    "AEL": _ANSWER + " BECAUSE: {solution} {lecture}",
    "LA": "{lecture} " + _ANSWER,
    "EA": "{solution} " + _ANSWER,
    "LEA": "{lecture} {solution} " + _ANSWER,
    "ELA": "{solution} {lecture} " + _ANSWER,
    "LEPA": "",  # written line by line, see `_lepa`
}


def convert(
    base: Path, split: str, prompt_format: str, *, escape_newlines: bool = False, keep_spaces: bool = False
) -> list[dict[str, Any]]:
    """Every problem of a split as a LLaVA record, in the order of pid_splits.json.

    Args:
        base: folder with `pid_splits.json` and `problems.json`; images lie in `<id>/<name>` below the image folder.
        prompt_format: `INPUT-OUTPUT`, such as QCM-LEA or QCM-LEPA.
        keep_spaces: leave the space before an answer whose lecture or solution is empty, as upstream's script does.
        escape_newlines: write a line break inside a lecture or a solution as the two characters backslash and n.

    Raises:
        DataError: for an unknown split or format, or files that are not ScienceQA's.
    """
    wanted, written = _formats(prompt_format)
    problems = _read(base / "problems.json")
    splits = _read(base / "pid_splits.json")
    if split not in splits:
        raise DataError(f"no split {split!r}", str(base / "pid_splits.json"), suggest(split, splits, noun="splits"))
    return [
        _record(id, problems, (wanted, written), base, escape=escape_newlines, keep_spaces=keep_spaces)
        for id in splits[split]
    ]


def check_format(prompt_format: str) -> None:
    """Raises DataError, with the nearest name, for a format that is not one."""
    _formats(prompt_format)


def _formats(prompt_format: str) -> tuple[str, str]:
    wanted, _, written = prompt_format.partition("-")
    if wanted not in _INPUTS or written not in _OUTPUTS:
        known = [f"{first}-{second}" for first in _INPUTS for second in _OUTPUTS]
        tip = suggest(prompt_format, known, noun="formats").partition("formats:")[0]
        raise DataError(
            f"no prompt format {prompt_format!r}",
            "--prompt-format",
            f"{tip}INPUT-OUTPUT with INPUT one of {', '.join(_INPUTS)} and OUTPUT one of {', '.join(_OUTPUTS)}",
        )
    return wanted, written


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        fix = "download ScienceQA (github.com/lupantech/ScienceQA, data/scienceqa) and name its folder with --base-dir"
        raise DataError(f"cannot read {file.name}: {error.strerror}", str(file), fix) from error
    except ValueError as error:
        raise DataError(f"{file.name} is not JSON: {error}", str(file), "download it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file.name} holds no object", str(file), "download it again")
    return content


def _record(
    id: str, problems: dict[str, Any], form: tuple[str, str], base: Path, *, escape: bool, keep_spaces: bool
) -> dict[str, Any]:
    wanted, written = form
    where = f"{base / 'problems.json'}, problem {id}"
    try:
        values = _values(problems[id], escape)
        picture = problems[id]["image"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"the problem has no usable {error}", where, "is this ScienceQA's own file? download it again"
        ) from error
    question = _without(_QUESTION_MARK, _tidy("\n".join(_INPUTS[wanted]).format(**values)))
    if written == "LEPA":
        answer = _tidy("\n".join(_lepa(values)))
    else:
        answer = _without(_ANSWER_MARK, _tidy(_ANSWER_MARK + _OUTPUTS[written].format(**values)))
        answer = answer if keep_spaces else answer.strip()
    record: dict[str, Any] = {"id": id}
    if picture is not None:
        record["image"] = f"{id}/{picture}"
        question += f"\n{IMAGE_TAG}"
    record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return record


def _values(problem: dict[str, Any], escape: bool) -> dict[str, str]:
    choices = problem["choices"]
    reasons = {key: problem[key].replace("\n", "\\n") if escape else problem[key] for key in ("lecture", "solution")}
    return {
        "question": problem["question"],
        "context": problem["hint"].strip() or "N/A",
        "choices": " ".join(f"({letter}) {choice}" for letter, choice in zip(OPTIONS, choices, strict=False)),
        "answer": OPTIONS[problem["answer"]],
        **reasons,
    }


def _lepa(values: dict[str, str]) -> Iterator[str]:
    """Lecture and solution on lines of their own, when there are any, then the answer below a mark."""
    for name in ("lecture", "solution"):
        if values[name].strip():
            yield f"{name.upper()}: {values[name]}"
    yield "###"
    yield f"ANSWER: {values['answer']}."


def _without(mark: str, text: str) -> str:
    """A text that begins with a mark without it, and without any other of its kind, as upstream takes them out."""
    return text.replace(mark, "") if text.startswith(mark) else text


def _tidy(text: str) -> str:
    """Pairs of spaces become one, and a reason that is missing leaves no `BECAUSE:` behind."""
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text
