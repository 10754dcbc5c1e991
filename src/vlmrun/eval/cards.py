"""The scorecards of an evaluation of several benchmarks, from the questions that were asked and their answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.eval import protocol, scoring
from vlmrun.eval.asked import Asked, Key, key_of
from vlmrun.eval.metrics.base import Answered, groups

Rows = Sequence[Mapping[str, Any]]


def make(
    asked: Sequence[Asked],
    answers: Rows,
    controls: Mapping[str, Rows],
    *,
    template: str,
    image_aspect: str,
    run: str = "",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A card for every benchmark that is scored here, and a line for every answer with how it was read.

    Args:
        controls: answers to the same questions with other images (`shuffled`) or without (`blind`).
        run: the run's name, for the number that is published of a recipe.
    """
    texts = _texts(answers)
    cards: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for name, part in groups([one for one in asked if one.benchmark is not None], lambda one: one.data).items():
        config = _config(part[0])
        if config.metric is None:
            continue
        spoken = protocol.describe(config, template=template, image_aspect=image_aspect)
        card, marks = scoring.card(name, config, _answered(part, texts), spoken, run)
        for control, rows in controls.items():
            card[control] = _control(config, part, _texts(rows))
        cards[name] = {**card, "problems": {}}
        lines += marks
    return cards, lines


def unscored(asked: Sequence[Asked], answers: Rows, run: str) -> dict[str, Any]:
    """The sets that are scored elsewhere: how many of their questions are answered, and what is published of them."""
    texts = _texts(answers)
    found = {}
    for name, part in groups([one for one in asked if one.benchmark is not None], lambda one: one.data).items():
        config = _config(part[0])
        if config.metric is None:
            found[name] = {
                "by": "judge" if config.submission is None else "server",
                "n_questions": len(part),
                "n_answered": sum(one.key in texts for one in part),
                "note": config.note,
                **scoring.published(config, run),
            }
    return found


def _config(asked: Asked) -> BenchmarkConfig:
    assert asked.benchmark is not None
    return asked.benchmark.config


def _texts(rows: Rows) -> dict[Key, str]:
    return {key_of(dict(row)): str(row["answer"]) for row in rows}


def _answered(part: Sequence[Asked], texts: Mapping[Key, str]) -> list[Answered]:
    return [one.answered(texts[one.key]) for one in part if one.key in texts]


def _control(config: BenchmarkConfig, part: Sequence[Asked], texts: Mapping[Key, str]) -> float | None:
    """The same score of control answers; None when none could be asked."""
    rows = _answered(part, texts)
    metric = scoring.metric_of(config)
    marked = [(row, metric.mark(row, "strict")) for row in rows]
    value: float | None = metric.summary(marked, "strict")["value"] if marked else None
    return value


def upstream_files(asked: Sequence[Asked], answers: Rows, model: str) -> dict[str, str]:
    """Answers as the original scripts write them, one JSONL text for each benchmark, for their own tools to read.

    Args:
        model: the name kept as `model_id`.
    """
    texts = _texts(answers)
    found: dict[str, list[str]] = {}
    for one in asked:
        if one.benchmark is None or one.draw or one.key not in texts:
            continue
        row = one.benchmark.row
        tag = "<image>\n" if one.benchmark.config.prompt == "science" and row.image is not None else ""
        line: dict[str, Any] = {"question_id": row.own_id, "prompt": tag + row.stored, "text": texts[one.key]}
        if one.benchmark.config.prompt in ("mmbench", "rounds"):
            turn = int(row.id.rpartition("#")[2]) - 1 if "#" in row.id else 0
            options = [row.fields["ABCD"[place]] for place in range(len(row.letters))]
            line |= {"round_id": turn, "options": options, "option_char": list(row.letters)}
        # Upstream draws it; the same evaluation must write the same file.
        number = hashlib.sha256(json.dumps([model, *one.key]).encode()).hexdigest()[:22]
        line |= {"answer_id": number, "model_id": model, "metadata": {}}
        found.setdefault(one.data, []).append(json.dumps(line) + "\n")
    return {name: "".join(lines) for name, lines in found.items()}
