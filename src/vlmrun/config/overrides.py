"""One override as a shell hands it over: read by Hydra's grammar, or as plain text where the grammar cannot read it.

Hydra's grammar knows ASCII letters and few signs, so a file name such as `runs/lr=0.001/학습.json` is refused as it
stands. Such a value is put in Hydra's own quotes here, unless it could be meant in another way: as a list, a
dictionary, a function, or several values of a sweep.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from vlmrun.errors import Problem

UNREADABLE = (HydraException, ValueError, RecursionError)  # a number of too many digits, brackets without end
_ASSIGNMENT = re.compile(r"((?:\+\+?|~)?[A-Za-z0-9_./@:-]+)=(.*)", re.DOTALL)
# What begins with a bracket or a quote, or is a call, has a structure of its own; a comma may separate values.
_STRUCTURE = re.compile(r"""\s*[\[{('"].*|.*,.*|[A-Za-z_]\w*\(.*\)\s*""", re.DOTALL)


def parse(text: str) -> Override:
    """One override, read by Hydra's grammar.

    Raises:
        HydraException: when it cannot be read.
    """
    return OverridesParser.create().parse_override(text)


def readable(words: Sequence[str]) -> list[str]:
    """Words of a command line; a value that the grammar cannot read and that is plain text is put in quotes."""
    return [_readable(word) for word in words]


def _readable(word: str) -> str:
    found = _ASSIGNMENT.fullmatch(word)
    if found is None or _STRUCTURE.fullmatch(found[2]) or _can_be_read(word):
        return word
    text = f"{found[1]}={quoted(found[2])}"
    return text if _can_be_read(text) else word


def _can_be_read(word: str) -> bool:
    try:
        parse(word)
    except UNREADABLE:
        return False
    return True


def quoted(value: str) -> str:
    """A text in the double quotes of Hydra's grammar, where only quotes, and backslashes before them, are special."""
    inner = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)$", r"\1\1", inner) + '"'


def place(word: str) -> str:
    """Where a problem of an override is."""
    return f"{word} (command line)"


def problem(word: str) -> Problem | None:
    """What is wrong with a word by itself, whatever is configured; None: it is an override of one value."""
    if not _is_unicode(word):
        shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Problem(f"{shown!r} is not UTF-8", place(shown), "rename the file, or give a link with another name")
    try:
        override = parse(word)
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[0]
        return Problem(f"cannot read the override {word!r}: {first}", place(word), _as_text(word))
    if not override.key_or_group:
        return Problem(f"the override {word!r} has no key", place(word), "write key=value, such as seed=1")
    if override.is_sweep_override():
        what = f"{override.key_or_group} is given several values, and this is one run"
        return Problem(what, place(word), f"vlmrun -m ... for a sweep; as one text: {_one_text(word)}")
    return None


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(word: str) -> str:
    found = _ASSIGNMENT.fullmatch(word)
    if found is None:
        return "write key=value; quote a value with spaces, brackets or commas: 'key=[a,b]'"
    many = "; as several values: 'key=[a,b]' with quotes around each: 'key=[\"a b\",\"c\"]'"
    return f"as one text: {_one_text(word)}{many if _STRUCTURE.fullmatch(found[2]) else ''}"


def _one_text(word: str) -> str:
    """The word as a shell takes it, its value in Hydra's quotes."""
    key, _, value = word.partition("=")
    return shlex.quote(f"{key}={quoted(value)}")
