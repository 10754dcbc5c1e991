"""Benchmarks as they are put to a model: each question with its image where that is found."""

from __future__ import annotations

import random
from pathlib import Path

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.data.images.finding import ImageFolder, folder_of
from vlmrun.data.reading import ImageCheck
from vlmrun.data.sample import IMAGE_TAG, Question, Rejected, Turn
from vlmrun.eval import inline, questions
from vlmrun.eval.asked import Asked, Benchmark


def asked(name: str, config: BenchmarkConfig, inline_images: Path) -> tuple[list[Asked], list[Rejected]]:
    """All questions of a set, and those whose image is not there.

    Args:
        name: of the data entry.
        inline_images: folder for images that stand in the question file.

    Raises:
        DataError: for a question file or expected answers that cannot be used.
    """
    found: list[Asked] = []
    rejected: list[Rejected] = []
    for place, row in enumerate(questions.read(config, need_gold=config.metric is not None)):
        root, picture = folder_of(config), row.image
        if picture is not None and row.picture != picture:
            root, picture = ImageFolder(inline_images), inline.unpack(picture, inline_images)
        text = row.text if picture is None else f"{IMAGE_TAG}\n{row.text}"
        golds = row.fields.get("answers") or row.fields.get("answer", "")
        question = Question(
            id=row.id,
            images=() if picture is None else (picture,),
            turns=(Turn("user", text),),
            source=(config.annotations, place),
            answer=" | ".join(map(str, golds)) if isinstance(golds, list) else str(golds),
            category=row.category,
            split="test",
        )
        problem = ImageCheck(root).check(question, suggesting=False)
        if isinstance(problem, Rejected):
            rejected.append(problem)
        else:
            found.append(Asked(question, root, name, config.on_error == "skip", Benchmark(config, row)))
    return found, rejected


def chosen(found: list[Asked], limit: int | None, seed: int) -> list[Asked]:
    """All of them, or a fixed choice."""
    if limit is None or limit >= len(found):
        return found
    return [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), limit))]
