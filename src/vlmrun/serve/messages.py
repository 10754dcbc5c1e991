"""What the HTTP side and a worker process say to each other, over a pipe of our own. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vlmrun.data.sample import Turn

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The neutral values choose greedily, as `vlmrun chat` and evaluations do.

    Args:
        temperature: 0 takes the likeliest token and reads neither `top_p`, `top_k` nor `seed`.
        top_k: 0 keeps all tokens.
        repetition_penalty: divides the logits of tokens that the answer has, as transformers does for embeddings.
        frequency_penalty, presence_penalty: taken off the logits of tokens that the answer has, as OpenAI documents.
        top_logprobs: how many alternatives are reported beside each token; None reports no log-probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a worker loads and how it answers.

    Args:
        models: names and the folders of their artifacts.
        bits: 4 or 8 quantizes linear layers; None: as they were saved.
        batch: answers decoded together at most.
        remembered: bytes of keys and values, and as many of image features, kept for later questions.
        gpu: index of the GPU; None: the CPU.
    """

    models: tuple[tuple[str, str], ...]
    dtype: str
    attention: str
    bits: int | None
    batch: int
    remembered: int
    gpu: int | None


@dataclass(frozen=True)
class Ask:
    """One question.

    Args:
        turns: the conversation; None: `prompt` is continued as it is written.
        images: files, in the order of their tags.
        max_tokens: None: as many as the model's context leaves, `most_tokens` at most.
    """

    id: int
    model: str
    turns: tuple[Turn, ...] | None
    prompt: str
    images: tuple[bytes, ...]
    sampling: Sampling
    max_tokens: int | None
    most_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cancel:
    """The client has left."""

    id: int


@dataclass(frozen=True)
class Token:
    """A chosen token as text, its log-probability, and the likeliest ones with theirs."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Usage:
    """Tokens of a question so far, and seconds spent on it."""

    prompt: int
    completion: int
    reused: int
    image_seconds: float
    first_seconds: float


@dataclass(frozen=True)
class News:
    """What is new of an answer."""

    id: int
    text: str
    tokens: tuple[Token, ...]
    finish: Finish | None
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """A question that gets no answer, or under id -1 a worker that cannot start."""

    id: int
    error: dict[str, Any]  # `VlmrunError.to_dict`


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its models.

    Args:
        models: for each name what a client may want to know.
    """

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
