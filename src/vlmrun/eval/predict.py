"""Ask a model questions and keep its answers, batch by batch, so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.data.dataset import Item
from vlmrun.data.prompts import Prompts
from vlmrun.data.reading import list_skipped
from vlmrun.data.sample import IMAGE_TAG, Question
from vlmrun.errors import DataError
from vlmrun.names import SKIPPED

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """A question and where its picture is looked for.

    Args:
        data: name of the data entry.
        skip: leave the question out when its picture cannot be used.
    """

    question: Question
    images: Path | None
    data: str
    skip: bool = False


@dataclass(frozen=True)
class Asker:
    """How questions are put to a model: greedily, so that the answers are a function of the model alone."""

    vlm: Any
    prompts: Prompts
    batch: int
    max_new_tokens: int

    def predict(self, questions: Sequence[Asked], answers: Path, report: Report) -> list[dict[str, Any]]:
        """Answers all questions, in order, and returns the rows of `answers`.

        Batches always hold the same questions: padding can sway a near tie, and a resumed evaluation must not differ
        from an undisturbed one. Rows of a batch that is whole in the file are kept, others are asked again.

        Args:
            answers: JSONL of `question_id`, `data`, `image`, `text`, `category`, `split`, `expected`, `answer`.
            report: called with the numbers of questions done and in all.
        """
        known = _read(answers)
        batches = [questions[start : start + self.batch] for start in range(0, len(questions), self.batch)]
        is_kept = [all(_key(asked) in known for asked in batch) for batch in batches]
        rows = [known[_key(asked)] for batch, kept in zip(batches, is_kept, strict=True) if kept for asked in batch]
        artifact.write_text(answers, "".join(_line(row) for row in rows))
        done = len(rows)
        with answers.open("a", encoding="utf-8") as handle:
            for batch, kept in zip(batches, is_kept, strict=True):
                if kept:
                    continue
                new = self._answer(batch, answers.parent / SKIPPED)
                handle.write("".join(_line(row) for row in new))
                handle.flush()
                rows += new
                done += len(batch)
                report(done, len(questions))
        order = {_key(asked): place for place, asked in enumerate(questions)}
        return sorted(rows, key=lambda row: order[row["data"], row["question_id"]])

    def _answer(self, batch: Sequence[Asked], skipped: Path) -> list[dict[str, Any]]:
        items: list[Item] = []
        usable: list[Asked] = []
        for asked in batch:
            question = asked.question
            try:
                pixels, layouts = self.prompts.encoder.pixels(question, asked.images)
                items.append(self.prompts.item(question.turns, pixels, question.where, layouts))
                usable.append(asked)
            except DataError as error:
                if not asked.skip:
                    raise
                list_skipped(skipped, [{"id": question.id, "reason": error.problems[0].what}])
        if not items:
            return []
        texts = self._generate(items)
        return [_row(asked, text) for asked, text in zip(usable, texts, strict=True)]

    def _generate(self, items: Sequence[Item]) -> list[str]:
        batch = self.prompts.collate(items)
        device = next(self.vlm.parameters()).device
        tensors = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        new = self.vlm.generate(
            tensors["input_ids"],
            tensors["attention_mask"],
            tensors["pixels"],
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.prompts.stop_ids,
            layouts=batch["layouts"],
        )
        return [self.prompts.answer(ids) for ids in new.tolist()]


def with_other_pictures(questions: Sequence[Asked], seed: int) -> list[Asked]:
    """Gives every question another picture of its category, by turning round the distinct ones.

    Pictures are turned and not questions: many ask about the same picture, and would meet it again. Questions without
    a picture, and those of a category with a single one, are left out.
    """
    groups: dict[str, list[Asked]] = defaultdict(list)
    for asked in questions:
        if asked.question.images:
            groups[asked.question.category].append(asked)
    turned: dict[tuple[str, str], Asked] = {}
    for group in groups.values():
        pictures = list(dict.fromkeys((asked.images, asked.question.images) for asked in group))
        if len(pictures) < 2:
            continue
        shift = 1 + seed % (len(pictures) - 1)
        others = {picture: pictures[(place + shift) % len(pictures)] for place, picture in enumerate(pictures)}
        for asked in group:
            root, names = others[asked.images, asked.question.images]
            turned[_key(asked)] = replace(asked, question=replace(asked.question, images=names), images=root)
    return [turned[_key(asked)] for asked in questions if _key(asked) in turned]


def _key(asked: Asked) -> tuple[str, str]:
    return asked.data, asked.question.id


def _row(asked: Asked, answer: str) -> dict[str, Any]:
    question = asked.question
    return {
        "question_id": question.id,
        "data": asked.data,
        "image": question.images[0] if question.images else None,
        "text": question.turns[-1].text.replace(IMAGE_TAG, "").strip(),
        "category": question.category,
        "split": question.split,
        "expected": question.answer,
        "answer": answer,
    }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of an earlier attempt; a line torn by a kill ends the file."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if not path.is_file():
        return found
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            found[row["data"], row["question_id"]] = row
        except (ValueError, KeyError, TypeError):
            break
    return found
