"""Runs of file names as energon writes them in split.yaml, `pretrain-{0..6}.tar`, and back. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_NUMBER = re.compile(r"(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """Every name that a pattern with `{0..6}` or `{a,b}` stands for, in order; padding is kept."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in _choices(found[1]) for name in expand(head + choice + tail)]


def collapse(names: Sequence[str]) -> list[str]:
    """Names in order, runs of neighbors that count up by one as one pattern."""
    found: list[str] = []
    rest = list(names)
    while rest:
        length, pattern = _run(rest)
        found.append(pattern)
        rest = rest[length:]
    return found


def _choices(inner: str) -> Iterator[str]:
    bounds = _RANGE.fullmatch(inner)
    if bounds is None:
        yield from inner.split(",")
        return
    padded = any(len(text) > 1 and text.startswith("0") for text in bounds.groups())
    width = max(len(text) for text in bounds.groups()) if padded else 0
    first, last = int(bounds[1]), int(bounds[2])
    step = 1 if first <= last else -1
    yield from (f"{number:0{width}}" for number in range(first, last + step, step))


def _run(names: Sequence[str]) -> tuple[int, str]:
    """How many names from the first on count up in one place, and the pattern for them."""
    first = _NUMBER.split(names[0])
    previous, place, length = first, -1, 1
    for name in names[1:]:
        words = _NUMBER.split(name)
        changed = _counts_up(previous, words)
        if changed is None or place not in (-1, changed):
            break
        previous, place, length = words, changed, length + 1
    if length == 1:
        return 1, names[0]
    return length, "".join([*first[:place], f"{{{first[place]}..{previous[place]}}}", *first[place + 1 :]])


def _counts_up(before: Sequence[str], after: Sequence[str]) -> int | None:
    """The one number in which two names differ, where it grows by one and keeps its width."""
    if before[::2] != after[::2]:
        return None
    changed = [place for place in range(1, len(before), 2) if int(before[place]) != int(after[place])]
    if len(changed) != 1:
        return None
    old, new = before[changed[0]], after[changed[0]]
    return changed[0] if int(new) == int(old) + 1 and len(new) == len(old) else None
