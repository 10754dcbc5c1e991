"""Private characters inside strings: blanks that a backslash made literal, values that only a program could give."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

ESCAPED = {" ": "\ue000", "\t": "\ue001", "\r": "\ue002"}  # a backslash and this blank, as one character of a word
_BLANKS = {mark: blank for blank, mark in ESCAPED.items()}
_OPEN, _CLOSE = "\ue010", "\ue011"
_UNKNOWN = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
PRIVATE = re.compile("[\ue000-\ue011]")  # a script that holds one of these itself is refused


def encode(source: str) -> str:
    """Backslash and blank as one character: the grammar knows no word that begins with an escaped blank."""
    return re.sub(r"\\(.)", lambda pair: ESCAPED.get(pair[1], pair[0]), source, flags=re.DOTALL)


def literal(text: str) -> str:
    """The same between quotes, where backslash and blank are two characters."""
    return "".join(f"\\{_BLANKS[char]}" if char in _BLANKS else char for char in text)


def blank(char: str) -> str | None:
    """The blank that a private character stands for."""
    return _BLANKS.get(char)


def unknown(program: str) -> str:
    """A value that depends on running a program. Its text is one plain word, so that `eval` can read it again."""
    return f"{_OPEN}{quote(shown(literal(program)).strip(), safe='')}{_CLOSE}"


def is_unknown(text: str) -> bool:
    """Whether any part of a value depends on running a program."""
    return _OPEN in text


def causes(text: str) -> list[str]:
    """The programs that a value depends on."""
    return [unquote(found) for found in _UNKNOWN.findall(text)]


def shown(text: str) -> str:
    """A value for people: what is not known as `$(program)`."""
    return _UNKNOWN.sub(lambda found: f"$({unquote(found[1])})", text)
