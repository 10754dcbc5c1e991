"""Questions as they are put to a model, and the order in which they are. Free of torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmrun.config.schema import BenchmarkConfig, Generation
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.sample import IMAGE_TAG, Question
from vlmrun.eval import metrics
from vlmrun.eval.metrics.base import Answered
from vlmrun.eval.row import Row

_BUCKET = 32  # characters: questions of one length and image stand together

Key = tuple[str, str, int]  # data, question, draw


@dataclass(frozen=True)
class Benchmark:
    """Where a question comes from that belongs to a benchmark."""

    config: BenchmarkConfig
    row: Row


@dataclass(frozen=True)
class Asked:
    """A question and where its image is looked for.

    Args:
        data: name of the data entry.
        skip: leave the question out when its image cannot be used.
        benchmark: its set and its row there; None: a plain question, asked greedily and scored by exact match.
        draw: which of several answers to it, from 0.
    """

    question: Question
    images: ImageFolder | None
    data: str
    skip: bool = False
    benchmark: Benchmark | None = None
    draw: int = 0

    @property
    def key(self) -> Key:
        """What tells this answer from all others."""
        return self.data, self.question.id, self.draw

    def answered(self, text: str) -> Answered:
        """The question with its answer, to be marked."""
        assert self.benchmark is not None
        row = self.benchmark.row
        return Answered(
            id=row.id if self.draw == 0 else f"{row.id}@{self.draw}",
            gold=row.fields,
            text=text,
            prompt=f"{IMAGE_TAG}\n{row.stored}" if row.image is not None else row.stored,
            category=str(row.fields.get("task", row.category)),
            image=row.picture,
        )


def greedy(max_new_tokens: int) -> Generation:
    """How plain questions are asked."""
    return Generation(
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        top_p=None,
        num_beams=1,
        stop=[],
        answers=1,
        second=None,
        second_tokens=1,
        likelihood=False,
    )


def batches(questions: Sequence[Asked], size: int) -> list[list[Asked]]:
    """Questions of like length together, and within them those about one image; always the same ones.

    What is answered alone, because it is drawn or compared, is alone.
    """
    groups: dict[str, list[Asked]] = defaultdict(list)
    for asked in questions:
        groups[asked.data if asked.benchmark is not None else ""].append(asked)
    found: list[list[Asked]] = []
    for group in groups.values():
        first = group[0].benchmark
        alone = first is not None and (first.config.generation.temperature > 0 or first.config.generation.likelihood)
        ordered = sorted(group, key=_place)
        step = 1 if alone else size
        found += [ordered[start : start + step] for start in range(0, len(ordered), step)]
    return found


def _place(asked: Asked) -> tuple[int, str]:
    return sum(len(turn.text) for turn in asked.question.turns) // _BUCKET, str(asked.question.images)


def line(asked: Asked, answer: str) -> dict[str, Any]:
    """A row of answers.jsonl; of a benchmark's question with its mark."""
    question = asked.question
    row: dict[str, Any] = {
        "question_id": question.id,
        "data": asked.data,
        "image": None if not question.images else question.images[0],
        "text": question.turns[-1].text.replace(IMAGE_TAG, "").strip(),
        "category": question.category,
        "split": question.split,
        "expected": question.answer,
        "answer": answer,
    }
    if question.others:
        row["also_expected"] = list(question.others)
    if asked.draw:
        row["draw"] = asked.draw
    if asked.benchmark is not None and asked.benchmark.config.metric is not None:
        mark = metrics.of(asked.benchmark.config.metric).mark(asked.answered(answer), "strict")
        row |= {"score": mark.score, "read_as": mark.read_as, "doubtful": mark.doubtful}
    return row


def until_stop(text: str, stops: Sequence[str]) -> str:
    """An answer up to the first of a set's own stop strings."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text.strip()


def key_of(row: dict[str, Any]) -> Key:
    """The key of a row of answers.jsonl."""
    return row["data"], row["question_id"], int(row.get("draw", 0))


def with_other_pictures(questions: Sequence[Asked], seed: int) -> list[Asked]:
    """Gives every question another image of its category, by turning round the distinct ones.

    Images are turned and not questions: many ask about the same image, and would meet it again. Questions without
    an image, and those of a category with a single one, are left out.
    """
    groups: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for asked in questions:
        if asked.question.images:
            name = asked.data if asked.benchmark is not None else ""
            groups[name, asked.question.category].append(asked)
    turned: dict[Key, Asked] = {}
    for group in groups.values():
        pictures = list(dict.fromkeys((asked.images, asked.question.images) for asked in group))
        if len(pictures) < 2:
            continue
        shift = 1 + seed % (len(pictures) - 1)
        others = {picture: pictures[(place + shift) % len(pictures)] for place, picture in enumerate(pictures)}
        for asked in group:
            root, names = others[asked.images, asked.question.images]
            turned[asked.key] = replace(asked, question=replace(asked.question, images=names), images=root)
    return [turned[asked.key] for asked in questions if asked.key in turned]


def without_pictures(questions: Sequence[Asked], *, every: bool) -> list[Asked]:
    """Questions without their images: every one that has some, or those of benchmarks that want a blind control."""
    found = []
    for asked in questions:
        wanted = every or (asked.benchmark is not None and asked.benchmark.config.blind_control)
        if not wanted or not asked.question.images:
            continue
        turns = tuple(
            replace(turn, text=turn.text.replace(IMAGE_TAG, "").lstrip("\n")) for turn in asked.question.turns
        )
        found.append(replace(asked, question=replace(asked.question, images=(), turns=turns)))
    return found
