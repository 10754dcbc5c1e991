"""What a question's text becomes before it is put into a template: one small builder for each kind of set.

Source: specification eval-and-serve 1, 2.5, 2.10, 2.11 (the model_vqa* scripts of LLaVA and Bunny).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.data.formats.values import text_or_number
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.eval.metrics.cmmmu import BLANK, CHOICE, STATEMENT
from vlmrun.eval.metrics.options import LETTERS

LETTER_TAIL = "\nAnswer with the option's letter from the given choices directly."
LETTER_TAIL_CN = "\n请直接回答选项字母。"
SHORT_TAIL = "\nAnswer the question using a single word or phrase."
VIZWIZ_TAIL = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_TAIL

_NOTHING = frozenset(("", "nan", "none"))
_CMMMU = {
    CHOICE: "请回答以下多项选择题，并选出正确选项。这些题目可能包括单选和多选题型。"
    "如果所提供的信息不足以确定一个明确的答案，那么请根据可用的数据和你的判断来选择最可能正确的选项。",
    STATEMENT: "请回答以下判断题，并根据题目描述和所给的信息来判断问题中陈述的对错。"
    "如果信息不完整或不足以作出绝对判断，请运用你的逻辑推理和现有信息来做出最可能的判断。",
    BLANK: "请回答以下填空题，并根据题目的要求和所提供的信息来给出最恰当的答案。"
    "如果信息不足以确切回答，那么请依据现有的数据和你的推理能力来填写最合理的答案。",
}


@dataclass(frozen=True)
class Round:
    """One way a question with options is asked.

    Args:
        text: the question with its options, as it is stored with the answer.
        letters: the original letter of the option in each place.
        options: option texts in their places.
    """

    text: str
    letters: tuple[str, ...]
    options: tuple[str, ...]


def is_nothing(value: Any) -> bool:
    """Whether a table's cell counts as empty; a word such as `none` does too, which cuts a list of options short."""
    return value is None or value != value or str(value).lower() in _NOTHING


def mmbench(question: Mapping[str, Any], *, all_rounds: bool = False) -> list[Round]:
    """A row of MMBench: hint, question, options; once, or once a rotation of the options."""
    options: list[str] = []
    for letter in "ABCD":
        if is_nothing(question.get(letter)):
            break
        options.append(text_or_number(question[letter], f"option {letter}"))
    head = text_or_number(question["question"], "`question`")
    if not is_nothing(question.get("hint")):
        head = f"{question['hint']}\n{head}"
    letters = LETTERS[: len(options)]
    rounds = []
    for turn in range(max(1, len(options)) if all_rounds else 1):
        turned = [*options[turn:], *options[:turn]]
        lines = [f"{letter}. {option}" for letter, option in zip(letters, turned, strict=True)]
        rounds.append(Round("\n".join([head, *lines]), tuple(letters[turn:] + letters[:turn]), tuple(turned)))
    return rounds


def choices(question: Mapping[str, Any]) -> str:
    """The question and `A. x` lines of its choices (`choice_a`, `choice_b`, ..), as SEED has them."""
    lines = [f"{letter}. {question[key]}" for letter in "ABCDE" if (key := f"choice_{letter.lower()}") in question]
    return "\n".join([str(question["question"]), *lines])


def science(value: str, *, has_image: bool, single: bool) -> str:
    """A ScienceQA question in training form: its own image tags removed, one put in front if there is an image."""
    text = value.replace(IMAGE_TAG, "").strip()
    text = f"{IMAGE_TAG}\n{text}" if has_image else text
    return text + LETTER_TAIL if single else text


def science_plain(problem: Mapping[str, Any]) -> str:
    """CQM-A as it was published: `Context: hint` if there is one, question, `A. x` lines."""
    lines = [f"Context: {problem['hint']}"] if str(problem.get("hint") or "").strip() else []
    lines.append(str(problem["question"]))
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)]
    return "\n".join(lines)


@dataclass(frozen=True)
class Asked:
    """MMMU's and CMMMU's prompt.

    Args:
        choices: option texts by letter; None for a question without any.
    """

    text: str
    choices: dict[str, str] | None


def mmmu(sample: Mapping[str, Any]) -> Asked:
    """A row of MMMU; marks such as `<image 1>` stay in the text."""
    if sample["question_type"] != "multiple-choice":
        return Asked(f"{sample['question']}{SHORT_TAIL}", None)
    options = dict(zip(LETTERS, listed(sample["options"]), strict=False))
    lines = "".join(f"({letter}) {option}\n" for letter, option in options.items())
    return Asked(f"{sample['question']}\n{lines}{LETTER_TAIL}", options)


def listed(cell: Any) -> list[str]:
    """A list, or a list written as text (Python's or JSON's)."""
    if isinstance(cell, str):
        try:
            cell = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            cell = json.loads(cell)
    return [str(item) for item in cell]


def cmmmu(sample: Mapping[str, Any]) -> Asked:
    """A row of CMMMU: the instruction of its type, the question, its options."""
    head = f"{_CMMMU[str(sample['type'])]}\n\n问题：{sample['question']}\n"
    if sample["type"] != CHOICE:
        return Asked(f"{head}正确答案：\n", None)
    given = [sample.get(f"option{place}") for place in range(1, 5)]
    options = {letter: str(option) for letter, option in zip(LETTERS, given, strict=False) if option is not None}
    lines = "".join(f"({letter}) {option}\n" for letter, option in options.items())
    return Asked(f"{head}选项：\n{lines}\n正确答案：\n", options)


def stored_answer(generated: str, stop: str | None, *, second: str | None = None) -> str:
    """An answer as the scripts store it: stripped, one trailing stop string cut, stripped again.

    Args:
        stop: the template's separator (KoLLaVA, Bunny); None where the script cuts none (LLaVA, every loader script).
        second: the second pass's text, of the answer prompter.
    """
    text = _cut(generated, stop)
    return text if second is None else f"{text}\n The answer is {_cut(second, stop)}"


def _cut(text: str, stop: str | None) -> str:
    text = text.strip()
    return text[: -len(stop)].strip() if stop and text.endswith(stop) else text


def model_id(path: str) -> str:
    """The name under which upstream's scripts keep a model's answers: the last part, or `<parent>_checkpoint-N`."""
    parts: Sequence[str] = path.strip("/").split("/")
    return f"{parts[-2]}_{parts[-1]}" if len(parts) > 1 and parts[-1].startswith("checkpoint-") else parts[-1]
