"""Nodes of which there are several classes, built in or a plugin's, which the literal of one field distinguishes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic_core import PydanticCustomError

from vlmrun import build
from vlmrun.config.schema.base import Node
from vlmrun.errors import ConfigError, suggest


class Chosen(Node):
    """Base of such nodes. The literal is a word, or the dotted name of a plugin's module, which defines the class.

    Attributes:
        by: the field with the literal; its values are called `noun`.
        classes: by literal; a class is known once it is defined.
    """

    by: ClassVar[str]
    noun: ClassVar[str]
    classes: ClassVar[dict[str, type[Any]]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.by in cls.model_fields:
            cls.classes.update(dict.fromkeys(typing.get_args(cls.model_fields[cls.by].annotation), cls))

    @classmethod
    def named(cls, name: str) -> type[Any]:
        """The class of a literal; a plugin's module, which must be allowed, is imported first.

        Raises:
            ConfigError: when there is none.
        """
        if name not in cls.classes and "." in name:
            build.module(name, cls.by)
        if name not in cls.classes:
            known = [word for word in cls.classes if "." not in word]
            raise ConfigError(f"unknown {cls.by} {name}", cls.by, suggest(name, known, noun=cls.noun))
        return cls.classes[name]

    @classmethod
    def typed(cls, value: Any, _: Any) -> Any:
        """A plain value as a node of its class; a validator for pydantic."""
        if isinstance(value, cls):
            return value
        name = value.get(cls.by) if isinstance(value, Mapping) else None
        if name is None:
            raise PydanticCustomError("not_chosen", "", {"by": cls.by})
        try:
            chosen = cls.named(str(name))
        except ConfigError as error:
            problem = error.problems[0]
            raise PydanticCustomError("unknown_choice", "", {"what": problem.what, "fix": problem.fix}) from error
        return chosen.model_validate(value)
