"""OpenAI-style chat JSON: `{"messages": [{"role", "content": text or parts}]}`, list or JSONL.

An image is a part of a message (`{"type": "image_url", "image_url": {"url": name}}`, or `{"type": "image", "image":
name}`), or is named in the list `images` and stands as `<image>` in the text or as a part without a name. Parts are
joined with line breaks. `weight: 0` in a message keeps its answer from being trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.formats import keys, llava, turns, values
from vlmrun.data.formats.base import records
from vlmrun.data.formats.turns import Talk
from vlmrun.data.sample import IMAGE_TAG, Rejected, Role, Sample, Turn
from vlmrun.errors import DataError, suggest

log = logs.get(__name__)

# record, file and place in it, keys to drop -> sample
Parse = Callable[[Any, tuple[str, int], Sequence[str]], Sample | Rejected]

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_KEYS = ("id", "messages", "images", "image", "system", "parallel_tool_calls")
_MESSAGE_KEYS = ("role", "content", "name")
_PART = 'a part is {"type": "text", "text": ...} or {"type": "image", "image": name}'


def read(path: Path, *, ignore_keys: Sequence[str] = ()) -> Iterator[Sample | Rejected]:
    """Yields every record as a sample, or as a rejection that says what is wrong with it.

    Args:
        ignore_keys: keys of records that are dropped.
    """
    yield from with_tags(path, parse, ignore_keys)


def parse(record: Any, source: tuple[str, int], ignore_keys: Sequence[str] = ()) -> Sample | Rejected:
    """One record."""
    id = ""
    try:
        id = values.identity(record)
        return turns.to_sample(id, source, turns.checked(turns.tagged(_talk(record, ignore_keys)), ignore_keys))
    except DataError as error:
        return turns.rejection(id, source, error)


def with_tags(path: Path, parse: Parse, ignore_keys: Sequence[str]) -> Iterator[Sample | Rejected]:
    """A file's records, parsed; says at the end in how many tags were put before the first question."""
    n_added = 0
    for index, record in records(path):
        sample = record if isinstance(record, Rejected) else parse(record, (str(path), index), ignore_keys)
        if isinstance(sample, Sample) and sample.images:
            n_added += not _has_tag(record)
        yield sample
    if n_added:
        log.info("%s: %s was put before the first question of %d records", path, IMAGE_TAG, n_added)


def named_images(record: Mapping[str, Any]) -> list[str]:
    """Names under `images`, or under `image`.

    Raises:
        DataError: where both name some, or hold something else than names.
    """
    found = {key: values.image_names(record.get(key), key) for key in ("images", "image")}
    if found["images"] and found["image"] and found["images"] != found["image"]:
        raise DataError("`images` and `image` name different images", fix="keep one of them")
    return found["images"] or found["image"]


def _has_tag(record: Mapping[str, Any]) -> bool:
    """Whether the record itself says where an image goes."""
    messages = record.get("messages") or record.get("conversations") or []
    for message in messages:
        content = message.get("content", message.get("value"))
        parts = content if isinstance(content, list) else [{"text": content}]
        if any(IMAGE_TAG in str(part.get("text", "")) or "image" in str(part.get("type")) for part in parts):
            return True
    return False


def _talk(record: Any, ignored: Sequence[str]) -> Talk:
    if not isinstance(record, dict):
        raise DataError(f"a record is a {type(record).__name__}, not an object", fix="write {...} with `messages`")
    if "messages" not in record:
        raise DataError("`messages` is missing", fix=suggest("messages", record, noun="keys here"))
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError("`messages` is not a list of messages", fix='write [{"role": "user", "content": ...}, ...]')
    problems = tuple(keys.unknown(record, _KEYS, ignored))
    listed = named_images(record)
    in_text: list[str | None] = []  # None: a part that `images` names
    found = [_message(message, number, in_text, ignored) for number, message in enumerate(messages)]
    names = [name for name in in_text if name is not None]
    if names and (listed or len(names) < len(in_text)):
        raise DataError("images are named in the messages and in `images`", fix="name each of them in one place")
    system, said = llava.split_system(record, found)
    return Talk(names or listed, said, system, first=len(found) - len(said), problems=problems)


def _message(message: Any, number: int, images: list[str | None], ignored: Sequence[str]) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"message {number} is {values.kind(message)}", fix='a message is {"role": ..., "content": ...}')
    said = message.get("role")
    role = said if isinstance(said, str) else repr(said)
    if role not in _ROLES:
        tools = "calls of tools are not trained: leave such records out"
        fix = tools if role in ("tool", "function") else suggest(role, _ROLES, noun="roles")
        raise DataError(f"message {number} is from {role!r}", fix=fix)
    keys.check_message(message, number, _MESSAGE_KEYS, ignored)
    if message.get("name"):
        raise DataError(f"key `name` of message {number} is not read", fix="leave it out, or write it into the text")
    side = _ROLES[role]
    supervised = keys.supervised(message, number, side)
    return Turn(side, _content(message.get("content"), number, images), supervised)


def _content(content: Any, number: int, images: list[str | None]) -> str:
    """Text of a message, a tag for every image part."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"message {number} has no text", fix="`content` is text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(IMAGE_TAG)
            images.append(_image(part, number))
        else:
            raise DataError(f"message {number} has a part of type {kind!r}", fix=_PART)
    return "\n".join(texts)


def _image(part: Mapping[str, Any], number: int) -> str | None:
    """A part's file name; None where `images` has it."""
    held = next((part[key] for key in ("image_url", "image", "path", "url") if part.get(key) is not None), None)
    if isinstance(held, dict):
        held = next((held[key] for key in ("url", "path") if held.get(key) is not None), held)
    if held is None:
        return None
    if isinstance(held, str):
        held = held.removeprefix("file://")
    (name,) = values.image_names([held], f"image part of message {number}")
    return name
