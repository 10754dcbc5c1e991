"""Shell patterns (`*`, `?`, `[a-z]`) and braces, on strings; no folder is ever looked into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

MAX_WORDS = 1000  # that one word in braces may become


def compiled(pattern: str) -> re.Pattern[str]:
    """A shell pattern as a regular expression. A backslash makes the next character literal."""
    out: list[str] = []
    place = 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if char == "*":
            if not out or out[-1] != ".*":
                out.append(".*")
        elif char == "?":
            out.append(".")
        elif char == "[" and (end := pattern.find("]", place + 1)) > 0:
            inside = pattern[place:end]
            inverted = inside[:1] in ("!", "^")
            out.append(f"[{'^' if inverted else ''}{_class(inside[inverted:])}]")
            place = end + 1
        else:
            if char == "\\" and place < len(pattern):
                char, place = pattern[place], place + 1
            out.append(re.escape(char))
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))


def _class(inside: str) -> str:
    return re.sub(r"([\\\[\]&~|])", r"\\\1", inside)


def bounded(value: str, pattern: str) -> bool:
    """Whether matching is certain to be quick: stars make it polynomial in the value's length."""
    return len(value) <= 4096 and pattern.count("*") <= 4


def strip(value: str, operator: str, pattern: str) -> str:
    """`${value%pattern}` and its three relatives; doubled operators take the longest match."""
    found = compiled(pattern)
    ends = range(len(value) + 1)
    if operator[0] == "#":
        for end in ends if operator == "#" else reversed(ends):
            if found.fullmatch(value, 0, end):
                return value[end:]
    else:
        for start in reversed(ends) if operator == "%" else ends:
            if found.fullmatch(value, start):
                return value[:start]
    return value


def substitute(value: str, operator: str, pattern: str, instead: str) -> str:
    """`${value/pattern/instead}`: the first match (`/`), all (`//`), at the start (`/#`), at the end (`/%`)."""
    if not pattern:
        return value
    source = compiled(pattern).pattern
    if operator == "/#":
        return re.sub(rf"\A(?:{source})", lambda _: instead, value, count=1, flags=re.DOTALL)
    if operator == "/%":
        return re.sub(rf"(?:{source})\Z", lambda _: instead, value, count=1, flags=re.DOTALL)
    return re.sub(source, lambda _: instead, value, count=0 if operator == "//" else 1, flags=re.DOTALL)


def braces(word: str) -> list[str]:
    """`{a,b}` and `{1..3}` outside quotes, still unexpanded words; one brace pair after another, left to right."""
    done: list[str] = []
    todo = [word]
    while todo and len(done) + len(todo) <= MAX_WORDS:
        first = todo.pop(0)
        parts = _first_braces(first)
        if parts is None:
            done.append(first)
        else:
            before, options, after = parts
            todo[:0] = [f"{before}{option}{after}" for option in options]
    return [*done, *todo]


def _first_braces(word: str) -> tuple[str, list[str], str] | None:
    for start, end, commas in _pairs(word):
        inside = word[start + 1 : end]
        if commas:
            edges = [start, *commas, end]
            options = [word[a + 1 : b] for a, b in pairwise(edges)]
        elif numbers := re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(-?\d{1,9}))?", inside):
            low, high, step = int(numbers[1]), int(numbers[2]), abs(int(numbers[3] or 1)) or 1
            run = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
            options = [str(number) for number in run[:MAX_WORDS]]
        elif letters := re.fullmatch(r"([A-Za-z])\.\.([A-Za-z])", inside):
            low, high = ord(letters[1]), ord(letters[2])
            options = [chr(code) for code in (range(low, high + 1) if low <= high else range(low, high - 1, -1))]
        else:
            continue
        return word[:start], options, word[end + 1 :]
    return None


def _pairs(word: str) -> Iterator[tuple[int, int, list[int]]]:
    """Brace pairs outside quotes and `${`, outermost first, with the places of their own commas."""
    quote, place = "", 0
    opened: list[tuple[int, list[int]]] = []
    found: list[tuple[int, int, list[int]]] = []
    while place < len(word):
        char = word[place]
        if char == "\\":
            place += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"`":
            quote = char
        elif char == "{":
            opened.append((-1 if word[place - 1 : place] == "$" else place, []))
        elif char == "," and opened:
            opened[-1][1].append(place)
        elif char == "}" and opened:
            start, commas = opened.pop()
            if start >= 0:
                found.append((start, place, commas))
        place += 1
    yield from sorted(found)
