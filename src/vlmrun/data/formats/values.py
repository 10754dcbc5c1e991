"""Values of records: what must be text is text, and a name of an image is one. Nothing is made text by `str`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmrun.data.sample import Question, Rejected, Sample
from vlmrun.errors import DataError

_SHOWN = 60  # characters of a value in a message
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256,}={0,2}")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_DOWNLOAD = "download the image, and write its file's name"
_DECODE = "write its bytes to a file, and the file's name here"


def identity(record: Any, key: str = "id") -> str:
    """A record's id: text or a number; empty where it has none.

    Raises:
        DataError: for a value of another type.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if value is None:
        return ""
    return text_or_number(value, f"`{key}`")


def text_or_number(value: Any, what: str) -> str:
    """Text as it is, a number as it is written; anything else is an error."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{what} is {kind(value)}, not text", fix='write it as text: "..."')
    return str(value)


def kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {list: "a list", dict: "an object", str: "text", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def image_names(value: Any, key: str = "image") -> list[str]:
    """File names of a record: one, or a list of them.

    Raises:
        DataError: for what is no file name; URLs, base64 and images of `datasets` are named as that.
    """
    names = [] if value is None else value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, dict):
            held = "an image of the library `datasets`" if {"bytes", "path"} & set(name) else "an object"
            raise DataError(f"`{key}` is {held}, neither a file name nor a list of them", fix=_DECODE)
        if not isinstance(name, str) or not name:
            what = f"`{key}` is neither a file name nor a list of them"
            raise DataError(what, fix="write a name, a list, or leave it out")
        check_name(name, key)
    return list(names)


def check_name(name: str, key: str) -> None:
    """Raises a DataError where a text is an image, or the address of one, instead of a file's name."""
    if name.startswith("data:") or (len(name) > 256 and _BASE64.fullmatch(name)):
        raise DataError(f"`{key}` is the image itself in base64 ({shown(name)}), not a file name", fix=_DECODE)
    if _URL.match(name):
        raise DataError(f"`{key}` is a URL ({shown(name)}), not a file name", fix=_DOWNLOAD)


def shown(text: str) -> str:
    """Text in a message: its beginning, where it is long."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: space, and characters of no width."""
    return not text.translate(_INVISIBLE).strip()


def usable_text(found: Sample | Rejected) -> Sample | Rejected:
    """A sample whose texts and names a tokenizer and a file can take, or what is wrong with them."""
    if isinstance(found, Rejected):
        return found
    names = [("`id`", found.id), *((f"the image name {name!a}", name) for name in found.images)]
    if isinstance(found, Question):
        names += [("the answer", each) for each in (found.answer, *found.others)]
    texts = [("`system`", found.system or "")]
    texts += [(f"message {number}", turn.text) for number, turn in enumerate(found.turns)]
    for what, text in (*names, *texts):
        place = _half(text)
        if place is not None:
            problem = f"{what} holds half a character (\\u{ord(text[place]):04x} at {place})"
            return Rejected(whole(found.id), found.source, problem, "write the whole character, or remove it")
    for what, text in texts:
        if "\x00" in text:
            problem = f"{what} holds the control character \\u0000 at {text.index(chr(0))}"
            return Rejected(found.id, found.source, problem, "remove it from the text")
    return found


def _half(text: str) -> int | None:
    """Where half a character stands, which JSON can write and UTF-8 cannot."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def whole(text: str) -> str:
    """Text that can be written: halves of characters are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def written(rejected: Rejected) -> Rejected:
    """A rejection that can be written."""
    return replace(rejected, id=whole(rejected.id), what=whole(rejected.what), fix=whole(rejected.fix))
