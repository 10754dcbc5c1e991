"""What LLaVA's clients and workers send. Free of torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from vlmrun.serve.messages import Sampling

_GREEDY = 0.001  # temperatures up to here


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")  # LLaVA's clients send more than is read


class Generate(_Body):
    """POST /worker_generate_stream."""

    prompt: str
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=0)] = 256
    stop: str | list[str] | None = None
    images: list[str] | None = None


class Status(_Body):
    """What a worker says of itself."""

    model_names: list[str]
    speed: Annotated[float, Field(ge=0)]
    queue_length: Annotated[int, Field(ge=0)]


class Register(_Body):
    """POST /register_worker."""

    worker_name: str
    check_heart_beat: bool
    worker_status: Status | None = None


class Model(_Body):
    """POST /get_worker_address."""

    model: str


class Beat(_Body):
    """POST /receive_heart_beat."""

    worker_name: str
    queue_length: Annotated[int, Field(ge=0)]


def sampling_of(asked: Generate) -> Sampling:
    """How tokens are chosen: temperatures next to 0 are greedy, as upstream's worker has it."""
    if asked.temperature <= _GREEDY:
        return Sampling()
    return Sampling(temperature=asked.temperature, top_p=max(asked.top_p, 1e-6))
