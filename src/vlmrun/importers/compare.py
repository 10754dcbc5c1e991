"""The composed run against the script's values again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.errors import Problem
from vlmrun.importers.recipe import Recipe


def differences(recipe: Recipe, folder: Path) -> Iterator[Problem]:
    """Every value of the script that the recipe in `folder` does not compose to."""
    composed = compose([f"+recipe={recipe.name}"], [folder])
    open_ = [problem for problem in composed.problems if not problem.what.endswith("has no value yet")]
    yield from open_
    if not composed.tree:
        return
    for item in recipe.settings():
        found = _at(composed.tree, item.key)
        if found != item.value:
            yield Problem(
                f"{item.key} is {found!r}, not {item.value!r}", item.source, f"vlmrun import writes {item.value!r}"
            )
    _, problems = validate(composed.tree, composed.problems)
    yield from problems


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return "not there"
        tree = tree[part]
    return tree
