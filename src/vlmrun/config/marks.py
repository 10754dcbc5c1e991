"""What a field of the schema is, besides its type: written beside it, in `Annotated`, and read from there only.

init_from: Annotated[str, Parent]
data: Annotated[list[str], Source]
micro_batch: Annotated[int, Volatile(unless=_cut)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Mark(Enum):
    """What the text of a field names."""

    PARENT = "a stage of the run, or the folder of an artifact"
    SOURCE = "a data source of the run"
    CONTENTS = "a folder or file that is known by its contents, not by its path"


Parent, Source, Contents = Mark.PARENT, Mark.SOURCE, Mark.CONTENTS


@dataclass(frozen=True)
class Volatile:
    """A field that moves work about without changing the result; it is left out of a stage's key.

    Written as `Volatile`, or as `Volatile(unless=f)` where the result does depend on it under some conditions.

    Attributes:
        unless: given the stage and the run, what goes into the key in the field's place; empty while it has no effect.
    """

    unless: Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Neutral:
    """A field that does nothing at this value: then it is left out of a stage's key.

    A field that is added later is marked so: the keys of all that was run without it stay as they were, and a file or
    an override written before it is still complete.
    """

    value: Any


def is_neutral(field: FieldInfo, value: Any) -> bool:
    """Whether a field does nothing at this value."""
    return any(isinstance(mark, Neutral) and mark.value == value for mark in field.metadata)


def is_volatile(field: FieldInfo) -> bool:
    """Whether a field is left out of keys, always or unless its condition holds."""
    return any(mark is Volatile or isinstance(mark, Volatile) for mark in field.metadata)


def conditions(node: BaseModel) -> Iterator[Callable[[Any, Any], dict[str, Any]]]:
    """The conditions of a node's volatile fields."""
    for field in type(node).model_fields.values():
        yield from (mark.unless for mark in field.metadata if isinstance(mark, Volatile))


def named(node: BaseModel, mark: Mark, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value with a mark, in the schema's order, those of nested nodes too."""
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        if mark in field.metadata:
            texts = value if isinstance(value, list) else [value]
            yield from ((prefix + name, text) for text in texts if text)
        elif isinstance(value, BaseModel):
            yield from named(value, mark, f"{prefix}{name}.")
