"""MiniCPM-V JSON: `{"id", "image": name or {"<image_00>": name, ...}, "conversations": [{"role", "content"}]}`.

With one image `<image>` stands in the first message, and is put before its text where it is missing. With several,
each has a marker of its own; the text is broken around the markers, as in MiniCPM-V's finetuning. A system text stands
under `system` or in a first message of role `system`; `loss: false` in a message keeps its answer from being trained.

Source: OpenBMB/MiniCPM-V@0dbb566 finetune/dataset.py, SupervisedDataset and preprocess
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.formats import image_marks, keys, llava, turns, values
from vlmrun.data.formats.base import records
from vlmrun.data.formats.turns import Talk
from vlmrun.data.sample import IMAGE_TAG, Rejected, Role, Sample, Turn
from vlmrun.errors import DataError, suggest

log = logs.get(__name__)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_MESSAGE_KEYS = ("role", "content")
_MARKER = re.compile(r"(<image_\d+>)")


def read(path: Path, *, ignore_keys: Sequence[str] = ()) -> Iterator[Sample | Rejected]:
    """Yields every record as a sample, or as a rejection that names the field; says how many were repaired.

    Args:
        ignore_keys: keys of records that are dropped.
    """
    seen: dict[str, int] = {}
    n_repaired = 0
    for index, record in records(path):
        found = record if isinstance(record, Rejected) else parse(record, (str(path), index), ignore_keys)
        if isinstance(found, Sample):
            n_repaired += bool(found.images) and not _has_marker(record)
            if found.id in seen:
                what = f"`id` {found.id!r} is used by record {seen[found.id]} as well"
                found = Rejected(found.id, found.source, what, "give every record its own id")
            seen.setdefault(found.id, index)
        yield found
    if n_repaired:
        log.info("%s: %s was put before the first question of %d records", path, IMAGE_TAG, n_repaired)


def parse(record: Any, source: tuple[str, int], ignore_keys: Sequence[str] = ()) -> Sample | Rejected:
    """One record."""
    id = ""
    try:
        id = values.identity(record)
        talk = _talk(record, ignore_keys)
        pictures = _pictures(record)
        problems = [*talk.problems, *([] if pictures else image_marks.refused(talk.turns, ignore_keys))]
        if problems:
            raise DataError(problems)
        if set(pictures) == {IMAGE_TAG}:
            said, images = _with_one(talk.turns), [pictures[IMAGE_TAG]]
        else:
            said, images = _with_several(talk.turns, pictures)
        _check_answers(said)
        return turns.to_sample(id, source, turns.checked(replace(talk, images=images, turns=said), ignore_keys))
    except DataError as error:
        return turns.rejection(id, source, error)


def _talk(record: Any, ignored: Sequence[str]) -> Talk:
    """Messages of a record; its images are not looked at."""
    if not isinstance(record, dict):
        raise DataError(f"a record is a {type(record).__name__}, not an object", fix="write {...} with `conversations`")
    if not values.identity(record).strip():
        raise DataError("`id` is missing", fix="give every record an id of its own")
    if "conversations" not in record:
        raise DataError("`conversations` is missing", fix=suggest("conversations", record, noun="keys here"))
    messages = record["conversations"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(
            "`conversations` is no list of at least two messages", fix='[{"role": "user", "content": ...}, ...]'
        )
    has_system = isinstance(messages[0], dict) and messages[0].get("role") == "system"
    found = [_turn(number, message, ignored, has_system=has_system) for number, message in enumerate(messages)]
    system, said = llava.split_system(record, found)
    problems = tuple(keys.unknown(record, llava.KEYS, ignored))
    return Talk([], said, system, first=len(found) - len(said), problems=problems)


def _turn(number: int, message: Any, ignored: Sequence[str], *, has_system: bool) -> Turn:
    where = f"conversations[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise DataError(f"`{where}.content` is no text", fix='a message is {"role": ..., "content": text}')
    said = message.get("role")
    role = said if isinstance(said, str) else repr(said)
    if role not in _ROLES:
        raise DataError(f"`{where}.role` is {role!r}", fix=suggest(role, _ROLES, noun="roles"))
    expected = "system" if has_system and number == 0 else "assistant" if (number - has_system) % 2 else "user"
    if role != expected:
        raise DataError(
            f"`{where}.role` is {role!r} where {expected!r} was expected", fix="user and assistant take turns"
        )
    keys.check_message(message, number, _MESSAGE_KEYS, ignored)
    return Turn(_ROLES[role], message["content"], keys.supervised(message, number, _ROLES[role]))


def _check_answers(said: list[Turn]) -> None:
    for number, turn in enumerate(said):
        if values.is_blank(turn.text):
            raise DataError(f"`conversations[{number}].content` is empty", fix="give it text, or remove the pair")
    if said and said[-1].role == "user":
        raise DataError("the last question has no answer", fix="add the answer, or remove the question")


def _pictures(record: dict[str, Any]) -> dict[str, str]:
    """File names by their markers."""
    image = record.get("image")
    if image is None:
        return {}
    found = {IMAGE_TAG: image} if isinstance(image, str) else image
    if not isinstance(found, dict) or not all(isinstance(name, str) and name for name in found.values()):
        raise DataError("`image` is neither a file name nor names by marker", fix='"a.png" or {"<image_00>": "a.png"}')
    for name in found.values():
        values.check_name(name, "image")
    odd = [key for key in found if not _MARKER.fullmatch(key) and (key != IMAGE_TAG or len(found) > 1)]
    if odd:
        raise DataError(f"`image` has the key {odd[0]!r}", fix="markers are written <image_00>, <image_01>, ...")
    return found


def _with_one(said: list[Turn]) -> list[Turn]:
    """The tag in the first message, put there if it is nowhere."""
    counts = [turn.text.count(IMAGE_TAG) for turn in said]
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
    first = said[0].text if counts[0] else f"{IMAGE_TAG}\n{said[0].text}"
    return [replace(said[0], text=first), *said[1:]]


def _with_several(said: list[Turn], pictures: dict[str, str]) -> tuple[list[Turn], list[str]]:
    """Markers become tags, with a line break on both sides, and images come in the order of the text."""
    used: list[str] = []
    found = []
    for number, turn in enumerate(said):
        if IMAGE_TAG in turn.text:
            raise DataError(
                f"`conversations[{number}].content` holds {IMAGE_TAG}, but "
                + ("the record has no `image`" if not pictures else "its images have names"),
                fix="name the image in `image`" if not pictures else "write " + next(iter(pictures)),
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
        found.append(replace(turn, text="\n".join(pieces)))
    twice = next((marker for marker in used if used.count(marker) > 1), None)
    if twice:
        raise DataError(f"{twice} stands in the text more than once", fix="write each marker once")
    unused = next((marker for marker in pictures if marker not in used), None)
    if unused:
        raise DataError(f"`image` names {unused}, which stands nowhere in the text", fix="write it where it belongs")
    return found, [pictures[marker] for marker in used]


def _has_marker(record: dict[str, Any]) -> bool:
    first = next(each for each in record["conversations"] if each["role"] == "user")
    return isinstance(record.get("image"), dict) or IMAGE_TAG in first["content"]
