"""ShareGPT JSON: `{"conversations": [{"from", "value"}], "images": [name, ...], "system"}`, list or JSONL.

As LLaVA's, with the images under `images` and their tags where the text needs them: none is moved. Where no text has a
tag, they are put before the first question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmrun.data.formats import llava, turns, values
from vlmrun.data.formats.openai import named_images, with_tags
from vlmrun.data.sample import Rejected, Sample
from vlmrun.errors import DataError

_ROLES = {"chatgpt": "gpt", "bing": "gpt", "bard": "gpt", "bot": "gpt", "model": "gpt"}


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
        plain = _as_llava(record) if isinstance(record, dict) else record
    except DataError as error:
        return turns.rejection(id, source, error)
    return llava.parse(plain, source, move_tags=False, add_tags=True, ignore_keys=ignore_keys)


def _as_llava(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its images under `image`, and with LLaVA's names of roles."""
    plain = {key: value for key, value in record.items() if key not in ("image", "images")}
    plain["image"] = named_images(record) or None
    messages = record.get("conversations")
    if isinstance(messages, list):
        plain["conversations"] = [_renamed(message) for message in messages]
    return plain


def _renamed(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("from"), str):
        return message
    return {**message, "from": _ROLES.get(message["from"], message["from"])}
