"""Nested values by dotted key, and those that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """A key whose value differs; `ABSENT` where a side does not have it."""

    key: str
    first: Any
    second: Any


def changes(first: Any, second: Any) -> list[Change]:
    """Keys with different values, in the order of the first side; keys of the second alone come last.

    What only one side has is one change, however much is in it. Lists of mappings are compared by position, other
    lists are one value.
    """
    return list(_changes(first, second, ""))


def _changes(first: Any, second: Any, key: str) -> Iterator[Change]:
    ours, theirs = _parts(first), _parts(second)
    if ours is None or theirs is None:
        if not _same(first, second):
            yield Change(key, first, second)
        return
    for name in dict.fromkeys([*ours, *theirs]):
        inner = name if not key or name.startswith("[") else f".{name}"
        yield from _changes(ours.get(name, ABSENT), theirs.get(name, ABSENT), f"{key}{inner}")


def _parts(value: Any) -> dict[str, Any] | None:
    """What is inside a mapping or a list of mappings; None of any other value."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {f"[{place}]": item for place, item in enumerate(value)}
    return None


def _same(first: Any, second: Any) -> bool:
    """Equal, and of one type: 1, 1.0 and True are three values. nan is nan."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return all(map(_same, first, second))
    return type(first) is type(second) and bool(first == second or (first != first and second != second))
