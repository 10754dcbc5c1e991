"""What every stage is, and how its class is found by its kind, built in or a plugin's."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, SerializeAsAny, WrapValidator
from pydantic_core import PydanticCustomError

from vlmrun import build
from vlmrun.config.schema.base import Node
from vlmrun.errors import ConfigError, suggest


class StageNode(Node):
    """Base of every stage. `kind` is a literal that its class is found by: a word, or the dotted name of a plugin."""

    kind: str
    classes: ClassVar[dict[str, type[StageNode]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        StageNode.classes |= dict.fromkeys(typing.get_args(cls.model_fields["kind"].annotation), cls)


def stage_class(kind: str) -> type[StageNode]:
    """The class of a stage's kind; a plugin's module, which must be allowed, is imported first.

    Raises:
        ConfigError: when there is no such kind.
    """
    if kind not in StageNode.classes and "." in kind:
        build.module(kind, "kind")
    if kind not in StageNode.classes:
        known = [name for name in StageNode.classes if name != "prepare" and "." not in name]
        raise ConfigError(f"unknown kind {kind}", "kind", suggest(kind, known, noun="kinds"))
    return StageNode.classes[kind]


def _typed(value: Any, _: Any) -> StageNode:
    if isinstance(value, StageNode):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind is None:
        raise PydanticCustomError("no_kind", "the stage has no kind")
    try:
        chosen = stage_class(str(kind))
    except ConfigError as error:
        problem = error.problems[0]
        raise PydanticCustomError("bad_kind", "", {"what": problem.what, "fix": problem.fix}) from error
    return chosen.model_validate(value)


# A stage of any kind; what is of no kind is refused, and JSON has all fields of the kind that it is.
Stage = Annotated[StageNode, WrapValidator(_typed), SerializeAsAny()]


def _of_a_user(stage: StageNode) -> StageNode:
    if stage.kind == "prepare":
        fix = "give the data source a `prepare`"
        raise PydanticCustomError("bad_kind", "", {"what": "stages of kind prepare are made by vlmrun", "fix": fix})
    return stage


UserStage = Annotated[Stage, AfterValidator(_of_a_user)]
