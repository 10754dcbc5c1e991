"""Parameters: `$X`, `${X:-default}`, `${X%.json}`, `${X//a/b}`, `${A[@]}`, `${#X}` and their like."""

from __future__ import annotations

import re
from typing import Protocol

from vlmrun.importers.shell import arithmetic, marks, patterns
from vlmrun.importers.shell.scope import Scope

_NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]")
_BRACED = re.compile(r"([#!]?)([A-Za-z_]\w*|\d+|[@*#?$!-])(\[[^\]]*\])?", re.DOTALL)
_DEFAULTS = (":-", ":=", ":?", ":+", "-", "=", "?", "+")
_STRIPS = ("##", "#", "%%", "%")
_CASES = {"^^": str.upper, ",,": str.lower}


class Words(Protocol):
    """What expands the words inside a parameter."""

    scope: Scope

    def text(self, raw: str) -> str:
        """A word where nothing is split."""

    def pattern(self, raw: str) -> str:
        """A word as a shell pattern."""

    def arithmetic(self, raw: str) -> str:
        """`$((raw))`."""


def name_length(text: str) -> int:
    """How many characters of an unbraced parameter's text are its name; `$10` is `$1` and a 0."""
    found = _NAME.match(text)
    return found.end() if found else 0


def expand(body: str, words: Words) -> str | list[str]:
    """The value of `${body}`; a list for `@` and `A[@]`."""
    found = _BRACED.match(body)
    if found is None:
        return marks.unknown(f"${{{body}}}")
    prefix, name, index = found.groups()
    rest = body[found.end() :]
    if prefix == "#" and not rest:
        return _size(name, index, words)
    if prefix == "!":
        return _indirect(name, index, rest, words)
    if prefix:  # `${#}`, or something that is no shell at all
        return marks.unknown(f"${{{body}}}")
    if name in "?$!-":
        return marks.unknown(f"${name}")
    listed = _listed(name, index, words)
    if listed is not None:
        return _each(listed, rest, words, first=0 if index else 1)
    return _one(name, _element(name, index, words), rest, words)


def _listed(name: str, index: str | None, words: Words) -> list[str] | None:
    if name in "@*" or (index is not None and index[1:-1] in ("@", "*")):
        return words.scope.items(name)
    return None


def _each(values: list[str], rest: str, words: Words, first: int) -> list[str]:
    if slice_ := re.fullmatch(r":(\d+)(?::(\d+))?", rest):
        start = max(int(slice_[1]) - first, 0)
        return values[start : start + int(slice_[2])] if slice_[2] else values[start:]
    if rest.startswith((":-", "-")) and not values:
        return [words.text(rest.lstrip(":")[1:])]
    return [_changed(value, rest, words) for value in values] if rest[:1] in ("#", "%", "/", "^", ",") else values


def _element(name: str, index: str | None, words: Words) -> str | None:
    if index is None:
        return words.scope.get(name)
    values = words.scope.items(name)
    number = words.arithmetic(index[1:-1])
    if not re.fullmatch(r"-?\d+", number) or any(map(marks.is_unknown, values)):
        return marks.unknown(f"${{{name}{index}}}")
    place = int(number)
    return values[place] if -len(values) <= place < len(values) else None


def _one(name: str, value: str | None, rest: str, words: Words) -> str:
    for sign in _DEFAULTS:
        if rest.startswith(sign):
            return _default(name, value, sign, rest[len(sign) :], words)
    if value is None:
        words.scope.unset.setdefault(name, 0)
    return _changed(value or "", rest, words)


def _default(name: str, value: str | None, sign: str, other: str, words: Words) -> str:
    there = value is not None and (value != "" or not sign.startswith(":"))
    if sign[-1] == "+":
        return words.text(other) if there else ""
    if there:
        return value or ""
    text = words.text(other)
    if sign[-1] == "?":
        return marks.unknown(f"{name}: {text or 'not set'}")
    if sign[-1] == "=":
        words.scope.set(name, text)
    return text


def _changed(value: str, rest: str, words: Words) -> str:
    if not rest:
        return value
    if marks.is_unknown(value):
        return marks.unknown(f"{marks.causes(value)[0]} ${{{rest}}}")
    for sign in _STRIPS:
        if rest.startswith(sign):
            pattern = words.pattern(rest[len(sign) :])
            return patterns.strip(value, sign, pattern) if patterns.bounded(value, pattern) else marks.unknown(rest)
    if rest in _CASES:
        return _CASES[rest](value)
    if rest in ("^", ","):
        return (value[:1].upper() if rest == "^" else value[:1].lower()) + value[1:]
    if rest.startswith("/"):
        return _substituted(value, rest, words)
    if rest.startswith(":"):
        return _sliced(value, rest[1:], words)
    return marks.unknown(f"${{{rest}}}")


def _substituted(value: str, rest: str, words: Words) -> str:
    sign = next(sign for sign in ("//", "/#", "/%", "/") if rest.startswith(sign))
    body = rest[len(sign) :]
    place = 0
    while place < len(body) and body[place] != "/":
        place += 2 if body[place] == "\\" else 1
    pattern = words.pattern(body[:place])
    if not patterns.bounded(value, pattern):
        return marks.unknown(rest)
    return patterns.substitute(value, sign, pattern, words.text(body[place + 1 :]))


def _sliced(value: str, rest: str, words: Words) -> str:
    try:
        bounds = [arithmetic.evaluate(words.text(part), words.scope) for part in rest.split(":", 1)]
    except arithmetic.Unknown:
        return marks.unknown(f"${{:{rest}}}")
    start = max(len(value) + bounds[0], 0) if bounds[0] < 0 else bounds[0]
    if len(bounds) == 1:
        return value[start:]
    return value[start : bounds[1]] if bounds[1] < 0 else value[start : start + bounds[1]]


def _size(name: str, index: str | None, words: Words) -> str:
    listed = _listed(name, index, words)
    if listed is not None:
        return str(len(listed))
    return str(len(_element(name, index, words) or ""))


def _indirect(name: str, index: str | None, rest: str, words: Words) -> str:
    target = words.scope.get(name) or ""
    if index is not None or not re.fullmatch(r"[A-Za-z_]\w*|\d+", target):
        return marks.unknown(f"${{!{name}}}")
    return _one(target, words.scope.get(target), rest, words)
