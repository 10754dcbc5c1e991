"""A planned recipe: its stages, data, model and settings, before it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers.launch import Launch
from vlmrun.importers.meaning.draft import Account, Setting


@dataclass
class Stage:
    """A stage of a recipe: the option of conf/stage it starts from, and its settings below `stage.NAME`."""

    name: str
    preset: str
    settings: dict[str, Setting]


@dataclass
class Recipe:
    """One recipe to be written."""

    name: str
    model: dict[str, Setting] = field(default_factory=dict)  # options of model/llm, tower, connector, or `model` itself
    own_parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # tower/NAME -> an entry that is to be written
    data: dict[str, tuple[str, dict[str, Setting]]] = field(default_factory=dict)  # entry -> option, settings
    shared: dict[str, Setting] = field(default_factory=dict)  # model.*, hardware.*, tracking, seed
    stages: list[Stage] = field(default_factory=list)

    def settings(self) -> Iterable[Setting]:
        """All values, by their full keys."""
        yield from self.shared.values()
        for name, (_, values) in self.data.items():
            yield from (Setting(f"data.{name}.{key}", item.value, item.source) for key, item in values.items())
        for stage in self.stages:
            yield from (
                Setting(f"stage.{stage.name}.{key}", item.value, item.source) for key, item in stage.settings.items()
            )


@dataclass
class Plan:
    """What a script becomes."""

    recipes: list[Recipe] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defaults: list[tuple[str, Any, str]] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    training: set[int] = field(default_factory=set)  # numbers of the commands that train
    launches: list[Launch] = field(default_factory=list)
    flags: int = 0
    values: int = 0  # in the files beside the script: a DeepSpeed JSON, accelerate's YAML
    file_accounts: list[Account] = field(default_factory=list)

    @property
    def commands(self) -> int:
        """How many commands were looked at; they are numbered from 1."""
        return len(self.launches)


def free(kind: str, recipe: Recipe) -> str:
    taken = {stage.name for stage in recipe.stages}
    number = 1
    while (name := kind if number == 1 else f"{kind}{number}") in taken:
        number += 1
    return name
