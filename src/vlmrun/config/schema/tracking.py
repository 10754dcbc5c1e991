"""Services that get the numbers of a training, besides metrics.jsonl."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from vlmrun.config.marks import Neutral
from vlmrun.config.schema.base import Node

Tracker = Literal[
    "tensorboard", "wandb", "wandb_online", "mlflow", "aim", "comet", "clearml", "swanlab", "trackio"
]  # fmt: skip
ServiceName = Literal["tensorboard", "wandb", "mlflow", "aim", "comet", "clearml", "swanlab", "trackio"]


class Service(Node):
    """Where a service puts a training. What a service has no place for is refused (docs/guides/trackers.md)."""

    project: Annotated[str | None, Neutral(None)]  # null: vlmrun, so that all runs can be compared
    entity: Annotated[str | None, Neutral(None)]  # team or workspace
    group: Annotated[str | None, Neutral(None)]  # null: the run's name
    tags: Annotated[list[str], Neutral([])]
    mode: Annotated[Literal["offline", "online"], Neutral("offline")]


def _kind(value: Any) -> str:
    return "services" if isinstance(value, dict) else "names"


def _asked(value: Any) -> Any:
    """Nothing asked for is an empty list, and a service without values has those of all."""
    if isinstance(value, dict):
        return {name: {} if one is None else one for name, one in value.items()}
    return [] if value is None else value


Names = Annotated[list[Tracker], Tag("names")]
Services = Annotated[dict[ServiceName, Service], Tag("services")]
Tracking = Annotated[Annotated[Names | Services, Discriminator(_kind)], BeforeValidator(_asked)]

_ONLINE = "_online"


def services(tracking: list[Tracker] | dict[ServiceName, Service]) -> dict[str, Service]:
    """What is asked for, by service; a list names services with the values that all have."""
    if isinstance(tracking, dict):
        return {str(name): one for name, one in tracking.items()}
    return {
        name.removesuffix(_ONLINE): Service.model_validate({"mode": "online"} if name.endswith(_ONLINE) else {})
        for name in tracking
    }
