"""LLaVA JSON: `{"id", "image": name or names, "conversations": [{"from": "human"|"gpt", "value"}]}`, list or JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.data.formats.base import records
from vlmrun.data.sample import IMAGE_TAG, Rejected, Role, Sample, Turn, move_image_tags
from vlmrun.errors import DataError, suggest

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_UPSTREAM: dict[str, Role] = {"human": "user", "gpt": "assistant"}  # any other is unknown to it


def read(path: Path, *, as_it_is: bool = False) -> Iterator[Sample | Rejected]:
    """Yields every record as a sample, or as a rejection that says what is wrong with it.

    Args:
        as_it_is: leaves roles, empty turns and image tags to `compat.as_upstream`.
    """
    for index, record in records(path):
        yield record if isinstance(record, Rejected) else parse(record, (str(path), index), as_it_is=as_it_is)


def parse(record: Any, source: tuple[str, int], *, as_it_is: bool = False, move_tags: bool = True) -> Sample | Rejected:
    """One record; other keys than the three of the format are ignored, as upstream does.

    Args:
        move_tags: put image tags in front of their turn, as LLaVA does before training.
    """
    id = str(record.get("id", "")) if isinstance(record, dict) else ""
    try:
        images = _images(record)
        if as_it_is:
            turns = _turns(record, _UPSTREAM)
        else:
            turns = _turns(record, _ROLES)
            if images and move_tags:
                turns = [Turn(turn.role, move_image_tags(turn.text)) for turn in turns]
            _check(turns, images)
    except DataError as error:
        problem = error.problems[0]
        return Rejected(id, source, problem.what, problem.fix)
    return Sample(id, tuple(images), tuple(turns), source)


def _images(record: Any) -> list[str]:
    if not isinstance(record, dict):
        raise DataError(f"a record is a {type(record).__name__}, not an object", fix="write {...} with `conversations`")
    images = record.get("image")
    names = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(
            "`image` is neither a file name nor a list of them", fix="write a name, a list, or leave it out"
        )
    return names


def _turns(record: dict[str, Any], roles: dict[str, Role]) -> list[Turn]:
    if "conversations" not in record:
        raise DataError("`conversations` is missing", fix=suggest("conversations", record, noun="keys here"))
    messages = record["conversations"]
    if not isinstance(messages, list) or not messages:
        raise DataError("`conversations` is not a list of messages", fix='write [{"from": "human", "value": ...}, ...]')
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise DataError(f"message {number} has no text", fix='a message is {"from": ..., "value": text}')
        role = str(message.get("from"))
        if role not in roles and roles is _ROLES:
            raise DataError(f"message {number} is from {role!r}", fix=suggest(role, _ROLES, noun="roles"))
        turns.append(Turn(roles.get(role, "unknown"), message["value"]))
    return turns


def _check(turns: list[Turn], images: list[str]) -> None:
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise DataError(
                f"roles out of order: message {number} is the {turn.role}'s, the {expected}'s was expected",
                fix="human and gpt take turns, human first",
            )
        if not turn.text.strip():
            noun = "answer" if turn.role == "assistant" else "question"
            raise DataError(f"empty {noun} in message {number}", fix="give it text, or remove the pair of messages")
    if turns[-1].role == "user":
        raise DataError("the last question has no answer", fix="add the answer, or remove the question")
    n_tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if n_tags != len(images):
        raise DataError(
            f"{n_tags} {IMAGE_TAG} tags in the text, but {len(images)} images",
            fix=f"write {IMAGE_TAG} once for every image, where it belongs",
        )
