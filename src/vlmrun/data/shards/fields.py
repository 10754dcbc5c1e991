"""energon's field maps: which part of a sample is its image, its question and its answer. Free of torch.

An expression is a member's name after the base, and steps into its JSON: `jpg`, `json[0][value]`. A comma separates
alternatives, of which the first that exists is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmrun.errors import DataError, suggest

FIELDS = ("image", "context", "answers")
OPTIONAL = ("answer_weights",)
_EXPRESSION = re.compile(r"(?P<part>[^\[\],\s]+)(?P<steps>(?:\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class Path:
    """One alternative: a member and the steps into it."""

    part: str
    steps: tuple[str, ...]


def parse(fields: Mapping[str, str | None], where: str) -> dict[str, list[Path]]:
    """Alternatives of every field.

    Raises:
        DataError: for an unknown or missing field, or an expression that is none.
    """
    unknown = [name for name in fields if name not in (*FIELDS, *OPTIONAL)]
    if unknown:
        fix = suggest(unknown[0], (*FIELDS, *OPTIONAL), noun="fields")
        raise DataError(f"a question with its image has no field {unknown[0]!r}", where, fix)
    missing = [name for name in FIELDS if not fields.get(name)]
    if missing:
        fix = "{image: jpg, context: 'json[0][value]', answers: 'json[1][value]'}"
        raise DataError(f"the field map does not say what `{missing[0]}` is", where, fix)
    return {name: [_path(text, where) for text in value.split(",")] for name, value in fields.items() if value}


def _path(text: str, where: str) -> Path:
    found = _EXPRESSION.fullmatch(text.strip())
    if found is None:
        raise DataError(f"{text.strip()!r} is no place in a sample", where, "such as jpg, or json[0][value]")
    return Path(found["part"], tuple(found["steps"][1:-1].split("][")) if found["steps"] else ())


def value(paths: list[Path], parts: Mapping[str, Any], content: Callable[[str], bytes]) -> Any:
    """What the first alternative that exists leads to: a part's name, or a value of its JSON.

    Raises:
        DataError: when none exists.
    """
    for path in paths:
        if path.part not in parts:
            continue
        if not path.steps:
            return path.part
        try:
            return _step_into(json.loads(content(path.part)), path.steps)
        except (LookupError, TypeError):
            continue
        except ValueError as error:
            raise DataError(f"its {path.part} is no JSON: {error}", fix="write it again") from error
    missing = ", ".join(path.part + "".join(f"[{step}]" for step in path.steps) for path in paths)
    raise DataError(
        f"it has no {missing}", fix=f"change data.<name>.fields; its parts are {', '.join(parts) or 'none'}"
    )


def _step_into(found: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if isinstance(found, list):
            found = found[int(step)] if step.lstrip("-").isdecimal() else _missing(step)
        elif isinstance(found, dict):
            found = found[step]
        else:
            _missing(step)
    return found


def _missing(step: str) -> Any:
    raise LookupError(step)
