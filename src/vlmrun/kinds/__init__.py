"""Kinds of stages: a module for each, free of torch; what a kind does is in the module that its `back` names.

A kind from outside is a module of the same form below an allowed prefix, and its stages say `kind: its.dotted.name`.
"""

from __future__ import annotations

from collections.abc import Iterable

from vlmrun import build
from vlmrun.config.schema import StageNode
from vlmrun.errors import ConfigError
from vlmrun.kinds import average, convert, evaluate, merge, prepare, search, train
from vlmrun.kinds.base import AnyKind, Kind, Number

BUILT_IN: tuple[AnyKind, ...] = (
    prepare.KIND,
    train.KIND,
    merge.KIND,
    average.KIND,
    search.KIND,
    convert.KIND,
    evaluate.KIND,
)
_BY_NAME = {kind.name: kind for kind in BUILT_IN}


def of(stage: StageNode) -> AnyKind:
    """The kind of a stage.

    Raises:
        ConfigError: when a plugin's module is not allowed, not there, or has no `KIND`.
    """
    return find(stage.kind)


def find(name: str) -> AnyKind:
    """A kind by the name that configurations give it; errors as of `of`."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    found = getattr(build.module(name, "kind"), "KIND", None)
    if not isinstance(found, Kind):
        raise ConfigError(f"{name} has no KIND", "kind", "KIND = an object of a subclass of vlmrun.kinds.base.Kind")
    return found


def of_artifact(name: str) -> AnyKind:
    """The kind of a finished stage, which may be a plugin's that is not installed here: then nothing is known of it."""
    try:
        return find(name)
    except ConfigError:
        return _UNKNOWN


def columns(names: Iterable[str]) -> list[Number]:
    """The numbers that a table of these kinds of stages shows: vlmrun's own first, each once."""
    known = [number for kind in BUILT_IN for number in kind.numbers]
    others = [number for name in names if name not in _BY_NAME for number in of_artifact(name).numbers]
    by_key: dict[str, Number] = {}
    for number in [*known, *others]:
        by_key.setdefault(number.key, number)
    return list(by_key.values())


_UNKNOWN: AnyKind = Kind()
