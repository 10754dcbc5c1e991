"""Plain dict -> `RunConfig`, with every problem of shape in our own words and with the nearest name."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vlmrun.config.schema import DataConfig, RunConfig, StageNode
from vlmrun.errors import Problem, suggest

_FIXES = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "string_too_short": "some text",
}
_DATA = ("data", "benchmark")  # what an entry of `data` may be


def validate(tree: dict[str, Any], known: Sequence[Problem] = ()) -> tuple[RunConfig | None, list[Problem]]:
    """Types a composed tree.

    Args:
        known: problems found while composing; a value they already name is not reported twice.
    """
    if not tree.get("stage"):
        return None, [] if known else [Problem("nothing to run: no stage is chosen", "command line", "+recipe=smoke")]
    nobody = list(_homes(tree))
    if nobody:
        return None, nobody
    try:
        return RunConfig.model_validate(tree), []
    except ValidationError as error:
        named = {problem.where for problem in known}
        problems = []
        for detail in error.errors(include_url=False):
            path = _path(detail["loc"], tree)
            if path in named or (detail["input"] == "???"):
                continue
            named.add(path)  # of a value that may be of two types, pydantic says twice that it is of neither
            problems.append(_problem(detail, path, tree))
        return None, problems


def _homes(tree: Any, key: str = "") -> Iterator[Problem]:
    """Texts that begin with the home of a user whom this machine does not know, and those with a null character."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, value in items:
            yield from _homes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and tree.startswith("~"):
        try:
            Path(tree).expanduser()
        except RuntimeError:
            yield Problem(f"{tree!r}: there is no such user here", key, "~ alone is your own home")
    elif isinstance(tree, str) and "\0" in tree:
        yield Problem(f"{tree!r} holds a null character", key, "write text without it")


def _path(location: tuple[int | str, ...], tree: Any) -> str:
    """A dotted key, without what pydantic puts in where it has several models or types to choose from."""
    parts = [str(part) for part in location]
    is_data = len(parts) > 2 and parts[0] == "data" and parts[2] in _DATA
    if parts[0] == "tracking":
        del parts[1:2]
        parts = parts[:-1] if parts[-1] == "[key]" else parts
    if is_data or (len(parts) > 2 and parts[:2] == ["model", "tiles"]):
        del parts[2]
    for place, part in enumerate(parts):
        if not isinstance(tree, dict | list):
            del parts[place:]  # a value has no keys: these are the types it could have
            break
        items = tree if isinstance(tree, dict) else {str(index): item for index, item in enumerate(tree)}
        tree = items.get(part)
    return ".".join(parts)


def _problem(detail: ErrorDetails, path: str, tree: dict[str, Any]) -> Problem:
    parent, _, name = path.rpartition(".")
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Problem(f"unknown key {name!r}", parent or "the run", suggest(name, _fields(parent, tree), noun="keys"))
    if kind == "missing":
        fix = f"add {name}: ... or choose an option that has it"
        if not parent:
            fix = f"choose a recipe, as +recipe=smoke, or give {name}=..."
        return Problem(f"{path} is missing", parent or "the run", fix)
    if kind == "not_chosen" and detail["ctx"]["by"] != "kind":
        by = detail["ctx"]["by"]
        return Problem(f"{path} has no {by}", path, f"add {by}: ... or choose an option that has it")
    if kind == "not_chosen":
        return Problem(
            f"stage {name!r} has no kind",
            path,
            "it is not among the selected stages, but something sets values of it: to run part of a recipe use "
            f"only=[...] instead of stage=[...], or take out the values of {path}",
        )
    if kind == "unknown_choice":
        return Problem(detail["ctx"]["what"], path, detail["ctx"]["fix"])
    if kind == "model_type" and detail["input"] is None:
        return Problem(f"{path} is not chosen", path, f"choose one: {path}=..., or a recipe: +recipe=smoke")
    if kind == "string_pattern_mismatch":
        return Problem(f"{path} = {detail['input']!r} is no name", path, "letters, digits, - and _, as in run-2")
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(f"{detail['input']!r} is not an option of {path}", path, suggest(str(detail["input"]), expected))
    return Problem(
        f"{path} = {detail['input']!r}: {detail['msg'].lower()}",
        path,
        _FIXES.get(kind, "change the value"),
    )


def _fields(path: str, tree: dict[str, Any]) -> list[str]:
    """Names the schema knows below a dotted path."""
    model: Any = RunConfig
    node: Any = tree
    for part in path.split(".") if path else []:
        node = node.get(part, {}) if isinstance(node, dict) else {}
        model = _step(model, part, node)
        if model is None:
            return []
    names = [field.alias or name for name, field in model.model_fields.items()]
    return names if path else [*names, "recipe", "pipeline"]


def _step(model: Any, part: str, node: Any) -> Any:
    if model is dict:  # the value below a named stage or data source
        is_stage = isinstance(node, dict) and "kind" in node
        return StageNode.classes.get(node["kind"]) if is_stage else DataConfig
    annotation = model.model_fields[part].annotation if part in model.model_fields else None
    given = node.keys() if isinstance(node, dict) else set()
    options = list(_models(annotation))
    if options:
        return max(options, key=lambda option: len(given & option.model_fields.keys()))
    return dict if typing.get_origin(annotation) is dict else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every node that a value may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not dict:
        for option in typing.get_args(annotation):
            yield from _models(option)
