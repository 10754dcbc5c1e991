"""VQA-style JSONL: `{"question_id", "image", "text", "answer", "category", "split"}`, one question a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.data.formats.base import records
from vlmrun.data.sample import IMAGE_TAG, Question, Rejected, Sample, Turn, move_image_tags

_REQUIRED = ("question_id", "text")


def read(path: Path) -> Iterator[Sample | Rejected]:
    """Yields every line as a question, or as a rejection that says what is wrong with it.

    `image` may be left out for a question about text, `answer` for one that is asked and not scored; `category` and
    `split` default to `all` and `test`.
    """
    seen: set[str] = set()
    for index, record in records(path):
        found = record if isinstance(record, Rejected) else _parse(record, (str(path), index))
        if isinstance(found, Question):
            if found.id in seen:
                found = Rejected(found.id, found.source, "question_id is used twice", "give every question its own id")
            seen.add(found.id)
        yield found


def _parse(record: Any, source: tuple[str, int]) -> Question | Rejected:
    if not isinstance(record, dict):
        return Rejected("", source, f"a line is a {type(record).__name__}, not an object", "write {...} on every line")
    id = str(record.get("question_id", ""))
    for key in (*_REQUIRED, *(["answer"] if "answer" in record else [])):
        if not str(record.get(key, "")).strip():
            return Rejected(id, source, f"{key!r} is missing or empty", f"a question has {', '.join(_REQUIRED)}")
    image = record.get("image")
    if image is not None and not isinstance(image, str):
        return Rejected(id, source, "`image` is not a file name", "write one file name, or leave it out")
    text = str(record["text"])
    n_tags = text.count(IMAGE_TAG)
    if n_tags > (image is not None):
        return Rejected(
            id,
            source,
            f"{n_tags} {IMAGE_TAG} tags, but {int(image is not None)} images",
            "leave the tag out: it is added",
        )
    if image is not None:
        text = move_image_tags(text if n_tags else f"{IMAGE_TAG}\n{text}")
    return Question(
        id=id,
        images=() if image is None else (image,),
        turns=(Turn("user", text),),
        source=source,
        answer=str(record.get("answer", "")),
        category=str(record.get("category", "all")),
        split=str(record.get("split", "test")),
    )
