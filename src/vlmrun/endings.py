"""Expressions of PEFT's `rank_pattern` and `alpha_pattern`, which `re` compares with the ends of layers' names.

PEFT compares them itself, so no limit of time can be set (`vlmrun.expressions` has one). Only expressions are taken
whose cost can be counted before they are used: nothing is repeated that holds a repetition or a choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")
FIX = "the end of a layer's name, such as layers.0.*.q_proj"
_LONGEST = 500  # characters
_NAME = 64  # characters of a layer's name: the lengths that `*` may try
_MOST = 16 * _NAME**3  # ways to match a name
_TOKEN = re.compile(
    r"""(?P<one>\\[dDwWsS]|\\[^a-zA-Z0-9\s]|\[\^?(?:\\[dDwWsS]|\\[^a-zA-Z0-9\s]|[^\]\[\\])+\]|[^\\\[\](){}*+?|])
    |(?P<open>\((?:\?:)?(?!\?))|(?P<close>\))|(?P<or>\|)
    |(?P<repeat>(?:[*+?]|\{[0-9]{1,2}(?:,[0-9]{0,2})?\})\??)""",
    re.VERBOSE,
)


def fault(pattern: str) -> str | None:
    """Why an expression cannot be used as a pattern of ranks; None: it can."""
    if len(pattern) > _LONGEST:
        return f"an expression of {len(pattern)} characters; {_LONGEST} at most are read"
    try:
        ways = _Ways(pattern).all()
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        return f"{pattern!r} cannot be compared with names of layers: {error}"
    return f"{pattern!r} has too many ways to match a name" if ways > _MOST else None


def ends_as(pattern: str, layer: str) -> bool:
    """Whether the end of a layer's name is what a pattern says, as PEFT matches them."""
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


def value(patterns: Mapping[str, _Value], layer: str, otherwise: _Value) -> _Value:
    """The value of the first pattern that the end of a layer's name matches."""
    return next((each for pattern, each in patterns.items() if ends_as(pattern, layer)), otherwise)


class _Ways:
    """Counts the ways in which an expression may match one name, as far as `re` would try them."""

    def __init__(self, pattern: str) -> None:
        self._kinds: list[tuple[str, str]] = []
        at = 0
        while at < len(pattern):
            found = _TOKEN.match(pattern, at)
            if found is None:
                raise ValueError(f"{pattern[at : at + 3]!r} at {at} is not read here")
            self._kinds.append((str(found.lastgroup), found.group()))
            at = found.end()
        self._at = 0

    def all(self) -> int:
        """Of the whole expression."""
        ways = self._choice()
        if self._at < len(self._kinds):
            raise ValueError("a ) without a (")
        return ways

    def _next(self) -> tuple[str, str]:
        return self._kinds[self._at] if self._at < len(self._kinds) else ("end", "")

    def _choice(self) -> int:
        """Alternatives up to the end of their group."""
        ways = self._sequence()
        while self._next()[0] == "or":
            self._at += 1
            ways += self._sequence()
        return ways

    def _sequence(self) -> int:
        ways = 1
        while (kind := self._next()[0]) in ("one", "open"):
            self._at += 1
            item = 1
            if kind == "open":
                item = self._choice()
                if self._next()[0] != "close":
                    raise ValueError("a ( without a )")
                self._at += 1
            ways *= self._repeated(item)
        if kind == "repeat":
            raise ValueError(f"{self._next()[1]} repeats nothing")
        return ways

    def _repeated(self, item: int) -> int:
        kind, text = self._next()
        if kind != "repeat":
            return item
        self._at += 1
        text = text.removesuffix("?") or "?"
        if text == "?":
            return item + 1
        if item > 1:
            raise ValueError(f"{text} repeats a group that holds a repetition or a choice")
        low, _, high = text.strip("{}").partition(",")
        if text[0] in "*+" or (not high and "," in text):
            return _NAME
        return 1 + int(high or low) - int(low)
