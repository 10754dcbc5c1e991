"""MiniCPM-V JSON: `{"id", "image": name or {"<image_00>": name, ...}, "conversations": [{"role", "content"}]}`.

With one image `<image>` stands in the first message, and is put before its text where it is missing. With several,
each has a marker of its own; the text is broken around the markers, as in MiniCPM-V's finetuning.

Source: OpenBMB/MiniCPM-V@0dbb566 finetune/dataset.py, SupervisedDataset and preprocess
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.formats.base import records
from vlmrun.data.sample import IMAGE_TAG, Rejected, Role, Sample, Turn
from vlmrun.errors import DataError, suggest

log = logs.get(__name__)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}
_MARKER = re.compile(r"(<image_\d+>)")


def read(path: Path) -> Iterator[Sample | Rejected]:
    """Yields every record as a sample, or as a rejection that names the field; says how many were repaired."""
    seen: dict[str, int] = {}
    n_repaired = 0
    for index, record in records(path):
        found = record if isinstance(record, Rejected) else parse(record, (str(path), index))
        if isinstance(found, Sample):
            n_repaired += bool(found.images) and not _has_marker(record)
            if found.id in seen:
                what = f"`id` {found.id!r} is used by record {seen[found.id]} as well"
                found = Rejected(found.id, found.source, what, "give every record its own id")
            seen.setdefault(found.id, index)
        yield found
    if n_repaired:
        log.info("%s: %s was put before the first question of %d records", path, IMAGE_TAG, n_repaired)


def parse(record: Any, source: tuple[str, int]) -> Sample | Rejected:
    """One record; other keys than the three of the format are ignored, as upstream does."""
    id = str(record.get("id", "")) if isinstance(record, dict) else ""
    try:
        turns = _turns(record)
        pictures = _pictures(record)
        if set(pictures) == {IMAGE_TAG}:
            turns, images = _with_one(turns), [pictures[IMAGE_TAG]]
        else:
            turns, images = _with_several(turns, pictures)
        _check_answers(turns)
    except DataError as error:
        problem = error.problems[0]
        return Rejected(id, source, problem.what, problem.fix)
    return Sample(id, tuple(images), tuple(turns), source)


def _turns(record: Any) -> list[Turn]:
    if not isinstance(record, dict):
        raise DataError(f"a record is a {type(record).__name__}, not an object", fix="write {...} with `conversations`")
    if not str(record.get("id", "")).strip():
        raise DataError("`id` is missing", fix="give every record an id of its own")
    if "conversations" not in record:
        raise DataError("`conversations` is missing", fix=suggest("conversations", record, noun="keys here"))
    messages = record["conversations"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(
            "`conversations` is no list of at least two messages", fix='[{"role": "user", "content": ...}, ...]'
        )
    return [_turn(number, message) for number, message in enumerate(messages)]


def _turn(number: int, message: Any) -> Turn:
    where = f"conversations[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise DataError(f"`{where}.content` is no text", fix='a message is {"role": ..., "content": text}')
    role = str(message.get("role"))
    if role not in _ROLES:
        raise DataError(f"`{where}.role` is {role!r}", fix=suggest(role, _ROLES, noun="roles"))
    expected = "assistant" if number % 2 else "user"
    if role != expected:
        raise DataError(
            f"`{where}.role` is {role!r} where {expected!r} was expected", fix="user and assistant take turns"
        )
    return Turn(_ROLES[role], message["content"])


def _check_answers(turns: list[Turn]) -> None:
    for number, turn in enumerate(turns):
        if not turn.text.strip():
            raise DataError(f"`conversations[{number}].content` is empty", fix="give it text, or remove the pair")
    if turns[-1].role == "user":
        raise DataError("the last question has no answer", fix="add the answer, or remove the question")


def _pictures(record: dict[str, Any]) -> dict[str, str]:
    """File names by their markers."""
    image = record.get("image")
    if image is None:
        return {}
    found = {IMAGE_TAG: image} if isinstance(image, str) else image
    if not isinstance(found, dict) or not all(isinstance(name, str) and name for name in found.values()):
        raise DataError("`image` is neither a file name nor names by marker", fix='"a.png" or {"<image_00>": "a.png"}')
    odd = [key for key in found if not _MARKER.fullmatch(key) and (key != IMAGE_TAG or len(found) > 1)]
    if odd:
        raise DataError(f"`image` has the key {odd[0]!r}", fix="markers are written <image_00>, <image_01>, ...")
    return found


def _with_one(turns: list[Turn]) -> list[Turn]:
    """The tag in the first message, put there if it is nowhere."""
    counts = [turn.text.count(IMAGE_TAG) for turn in turns]
    later = next((number for number, count in enumerate(counts) if number > 0 and count), None)
    if later is not None:
        raise DataError(
            f"`conversations[{later}].content` holds {IMAGE_TAG}, which belongs into the first message",
            fix='move it there, or name the image: "image": {"<image_00>": ...} and <image_00> in that message',
        )
    if counts[0] > 1:
        raise DataError(
            f"`conversations[0].content` holds {counts[0]} {IMAGE_TAG} tags for one image", fix="write the tag once"
        )
    first = turns[0].text if counts[0] else f"{IMAGE_TAG}\n{turns[0].text}"
    return [Turn("user", first), *turns[1:]]


def _with_several(turns: list[Turn], pictures: dict[str, str]) -> tuple[list[Turn], list[str]]:
    """Markers become tags, with a line break on both sides, and images come in the order of the text."""
    used: list[str] = []
    found = []
    for number, turn in enumerate(turns):
        if IMAGE_TAG in turn.text:
            raise DataError(
                f"`conversations[{number}].content` holds {IMAGE_TAG}, but "
                + ("the record has no `image`" if not pictures else "its images have names"),
                fix="name the image in `image`" if not pictures else f"write {next(iter(pictures))}",
            )
        pieces = _MARKER.split(turn.text) if pictures else [turn.text]
        for marker in pieces[1::2]:
            if marker not in pictures:
                raise DataError(
                    f"`conversations[{number}].content` holds {marker}, which `image` does not name",
                    fix=suggest(marker, pictures, noun="markers"),
                )
        used += pieces[1::2]
        pieces[1::2] = [IMAGE_TAG] * (len(pieces) // 2)
        found.append(Turn(turn.role, "\n".join(pieces)))
    twice = next((marker for marker in used if used.count(marker) > 1), None)
    if twice:
        raise DataError(f"{twice} stands in the text more than once", fix="write each marker once")
    unused = next((marker for marker in pictures if marker not in used), None)
    if unused:
        raise DataError(f"`image` names {unused}, which stands nowhere in the text", fix="write it where it belongs")
    return found, [pictures[marker] for marker in used]


def _has_marker(record: dict[str, Any]) -> bool:
    return isinstance(record.get("image"), dict) or IMAGE_TAG in record["conversations"][0]["content"]
