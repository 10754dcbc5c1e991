"""VQA-style JSONL: `{"question_id", "image", "text", "answer", "category", "split"}`, one question a line.

Several reference answers are a list under `answer` or `answers`, of texts or of `{"answer": text}` as in VQAv2; each of
them is right. A number is text in `question_id` and in answers, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrun.data.formats import image_marks, keys, turns, values
from vlmrun.data.formats.base import records
from vlmrun.data.sample import IMAGE_TAG, Question, Rejected, Sample, Turn, move_image_tags
from vlmrun.errors import DataError

_REQUIRED = ("question_id", "text")
_KEYS = (*_REQUIRED, "image", "answer", "answers", "category", "split")
_NOTES = ("id", "question_type", "answer_type", "image_classes")


def read(path: Path, *, ignore_keys: Sequence[str] = ()) -> Iterator[Sample | Rejected]:
    """Yields every line as a question, or as a rejection that says what is wrong with it.

    `image` may be left out for a question about text, `answer` for one that is asked and not scored; `category` and
    `split` default to `all` and `test`.

    Args:
        ignore_keys: keys of records that are dropped.
    """
    seen: set[str] = set()
    for index, record in records(path):
        found = record if isinstance(record, Rejected) else _parse(record, (str(path), index), ignore_keys)
        if isinstance(found, Question):
            if found.id in seen:
                found = Rejected(found.id, found.source, "question_id is used twice", "give every question its own id")
            seen.add(found.id)
        yield found


def _parse(record: Any, source: tuple[str, int], ignored: Sequence[str]) -> Question | Rejected:
    if not isinstance(record, dict):
        return Rejected("", source, f"a line is a {type(record).__name__}, not an object", "write {...} on every line")
    id = ""
    try:
        id = values.identity(record, "question_id")
        return _question(record, id, source, ignored)
    except DataError as error:
        return turns.rejection(id, source, error)


def _question(record: dict[str, Any], id: str, source: tuple[str, int], ignored: Sequence[str]) -> Question:
    for key in _REQUIRED:
        if values.is_blank(id if key == "question_id" else _text(record, key, "")):
            raise DataError(f"{key!r} is missing or empty", fix=f"a question has {', '.join(_REQUIRED)}")
    image = record.get("image")
    if image is not None and not isinstance(image, str):
        raise DataError("`image` is not a file name", fix="write one file name, or leave it out")
    names = values.image_names(image)
    answers = _answers(record)
    asked = Turn("user", _placed(_text(record, "text", ""), names))
    problems = [*keys.unknown(record, (*_KEYS, *_NOTES), ignored), *image_marks.refused([asked], ignored)]
    if problems:
        raise DataError(problems)
    return Question(
        id=id,
        images=tuple(names),
        turns=(asked,),
        source=source,
        answer=answers[0] if answers else "",
        others=tuple(answers[1:]),
        category=_text(record, "category", "all"),
        split=_text(record, "split", "test"),
    )


def _placed(text: str, names: Sequence[str]) -> str:
    """The question with its image's tag in front, put there if it has none."""
    n_tags = text.count(IMAGE_TAG)
    if n_tags > len(names):
        raise DataError(f"{n_tags} {IMAGE_TAG} tags, but {len(names)} images", fix="leave the tag out: it is added")
    if not names:
        return text
    return move_image_tags(text if n_tags else f"{IMAGE_TAG}\n{text}")


def _text(record: Mapping[str, Any], key: str, default: str) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{key!r} is {values.kind(value)}, not text", fix='write it as text: "...", or leave it out')
    return value


def _answers(record: Mapping[str, Any]) -> list[str]:
    """All reference answers, each once."""
    found: list[str] = []
    for key in ("answer", "answers"):
        if key not in record:
            continue
        value = record[key]
        given = value if isinstance(value, list) else [value]
        for each in given:
            text = each.get("answer") if isinstance(each, dict) and isinstance(value, list) else each
            found.append(values.text_or_number(text, f"{key!r}"))
        if not given or any(values.is_blank(each) for each in found):
            raise DataError(f"{key!r} is missing or empty", fix="write an answer, or leave the key out")
    return list(dict.fromkeys(found))
