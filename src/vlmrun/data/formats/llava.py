"""LLaVA JSON: `{"id", "image": name or names, "conversations": [{"from": "human"|"gpt", "value"}]}`, list or JSONL.

A system text stands under `system` or in a first message from `system`. `loss: false` in a message keeps its answer
from being trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.formats import keys, others, turns, values
from vlmrun.data.formats.base import records
from vlmrun.data.formats.turns import Talk
from vlmrun.data.sample import IMAGE_TAG, Rejected, Role, Sample, Turn
from vlmrun.errors import DataError, suggest

log = logs.get(__name__)

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_UPSTREAM: dict[str, Role] = {"human": "user", "gpt": "assistant"}  # any other is unknown to it
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
KEYS = ("id", "image", "conversations", "system")
_MESSAGE_KEYS = ("from", "value")


def read(path: Path, *, as_it_is: bool = False, ignore_keys: Sequence[str] = ()) -> Iterator[Sample | Rejected]:
    """Yields every record as a sample, or as a rejection that says what is wrong with it.

    Args:
        as_it_is: leaves roles, empty turns and image tags to `compat.as_upstream`, and drops all other keys.
        ignore_keys: keys of records that are dropped.
    """
    n_moved = 0
    for index, record in records(path):
        if isinstance(record, Rejected):
            yield record
            continue
        found = parse(record, (str(path), index), as_it_is=as_it_is, ignore_keys=ignore_keys)
        n_moved += isinstance(found, Sample) and not as_it_is and _is_moved(record)
        yield found
    if n_moved:
        log.info("%s: %s was moved to the front of its question in %d records, as LLaVA does", path, IMAGE_TAG, n_moved)


def parse(
    record: Any,
    source: tuple[str, int],
    *,
    as_it_is: bool = False,
    move_tags: bool = True,
    add_tags: bool = False,
    ignore_keys: Sequence[str] = (),
) -> Sample | Rejected:
    """One record.

    Args:
        as_it_is: as in `read`.
        move_tags: put a single image's tag in front of its question, as LLaVA does before training.
        add_tags: put tags before the first question where images have none.
        ignore_keys: as in `read`.
    """
    id = ""
    try:
        id = values.identity(record)
        if not isinstance(record, dict):
            what = f"a record is a {type(record).__name__}, not an object"
            raise DataError(what, fix="write {...} with `conversations`")
        if as_it_is:
            names = values.image_names(record.get("image"))
            return turns.to_sample(id, source, Talk(names, _messages(record, _UPSTREAM, ())))
        talk = _talk(record, ignore_keys)
        talk = turns.tagged(talk) if add_tags else talk
        return turns.to_sample(id, source, turns.checked(turns.in_front(talk) if move_tags else talk, ignore_keys))
    except DataError as error:
        return turns.rejection(id, source, error)


def _talk(record: dict[str, Any], ignored: Sequence[str]) -> Talk:
    problems = tuple(keys.unknown(record, KEYS, ignored))
    images = values.image_names(record.get("image"))
    other = others.known_by_keys(record)
    if "conversations" not in record and other is not None:
        raise DataError(f"`conversations` is missing: this is {other[0]}", fix=other[1])
    system, said = split_system(record, _messages(record, _ROLES, ignored))
    return Talk(images, said, system, first=len(record["conversations"]) - len(said), problems=problems)


def split_system(record: Mapping[str, Any], said: Sequence[Turn]) -> tuple[str | None, list[Turn]]:
    """The record's system text, from its key or its first message, and the other turns."""
    given = record.get("system")
    if given is not None and not isinstance(given, str):
        raise DataError(f"`system` is {values.kind(given)}, not text", fix="write one text, or leave it out")
    rest = list(said)
    if rest and rest[0].role == "system":
        first = rest.pop(0).text
        if given and given != first:
            raise DataError("`system` and the system message differ", fix="keep one of them")
        given = first
    if any(turn.role == "system" for turn in rest):
        number = len(said) - len(rest) + [turn.role for turn in rest].index("system")
        raise DataError(
            f"roles out of order: message {number} is from 'system'", fix="a system text stands before all else"
        )
    return (None if not given or values.is_blank(given) else given), rest


def _messages(record: dict[str, Any], roles: Mapping[str, Role], ignored: Sequence[str]) -> list[Turn]:
    if "conversations" not in record:
        raise DataError("`conversations` is missing", fix=suggest("conversations", record, noun="keys here"))
    messages = record["conversations"]
    if not isinstance(messages, list) or not messages:
        raise DataError("`conversations` is not a list of messages", fix='write [{"from": "human", "value": ...}, ...]')
    return [_message(message, number, roles, ignored) for number, message in enumerate(messages)]


def _message(message: Any, number: int, roles: Mapping[str, Role], ignored: Sequence[str]) -> Turn:
    if isinstance(message, dict) and "role" in message and "content" in message and "value" not in message:
        raise DataError(
            f"message {number} has no text under `value`: it has `role` and `content`",
            fix='write "from" and "value"; data.<name>.format=minicpm or openai reads "role" and "content"',
        )
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise DataError(f"message {number} has no text", fix='a message is {"from": ..., "value": text}')
    said = message.get("from")
    role = said if isinstance(said, str) else repr(said)
    if roles is _UPSTREAM:
        return Turn(roles.get(role, "unknown"), message["value"])
    keys.check_message(message, number, _MESSAGE_KEYS, ignored)
    if role != "system" and role not in roles:
        fix = suggest(role, (*roles, "system"), noun="roles")
        tools = "calls of tools are not trained: leave such records out"
        raise DataError(f"message {number} is from {role!r}", fix=tools if role in _TOOL_ROLES else fix)
    side: Role = "system" if role == "system" else roles[role]
    return Turn(side, message["value"], keys.supervised(message, number, side))


def _is_moved(record: dict[str, Any]) -> bool:
    """Whether the only image's tag stands elsewhere than in front of its question."""
    image = record.get("image")
    if image is None or (isinstance(image, list) and len(image) != 1):
        return False
    texts = [message["value"] for message in record["conversations"] if _ROLES.get(message["from"]) == "user"]
    return any(IMAGE_TAG in text and not text.startswith(IMAGE_TAG) for text in texts)
