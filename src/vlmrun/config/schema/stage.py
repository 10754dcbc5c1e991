"""What every stage is, and how its class is found by its kind."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, SerializeAsAny, WrapValidator
from pydantic_core import PydanticCustomError

from vlmrun.config.schema.chosen import Chosen


class StageNode(Chosen):
    """Base of every stage."""

    by = "kind"
    noun = "kinds"
    classes: ClassVar[dict[str, type[Any]]] = {}

    kind: str


def _of_a_user(stage: StageNode) -> StageNode:
    if stage.kind == "prepare":
        fix = "give the data source a `prepare`"
        raise PydanticCustomError(
            "unknown_choice", "", {"what": "stages of kind prepare are made by vlmrun", "fix": fix}
        )
    return stage


# A stage of any kind; JSON has all fields of the kind that it is.
Stage = Annotated[StageNode, WrapValidator(StageNode.typed), SerializeAsAny()]
UserStage = Annotated[Stage, AfterValidator(_of_a_user)]
