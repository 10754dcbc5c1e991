"""What the engine is asked, and what it tells of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vlmrun.errors import VlmrunError
from vlmrun.serve.messages import Finish, Sampling
from vlmrun.serve.sampling import Chosen
from vlmrun.serve.served import Prompt, Served


@dataclass(frozen=True)
class Progress:
    """What is new of an answer: text that is sure to stay, the tokens chosen, and at the end why it ended."""

    text: str
    tokens: tuple[Chosen, ...] = ()
    finish: Finish | None = None


@dataclass
class Question:
    """A prompt to answer.

    Args:
        tell: given every `Progress`, and the error if it cannot be answered.
        stop: strings that end the answer.
        as_written: the answer continues a text: it is not trimmed, and the template's strings do not end it.

    Attributes:
        cancelled: set from anywhere; the answer ends with the next token.
        answered: tokens of the answer so far.
        reused: tokens of the prompt that were not computed again.
        image_seconds, first_seconds: spent on the images, and from being submitted to the first token.
    """

    model: Served
    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    tell: Callable[[Progress | VlmrunError], None]
    stop: tuple[str, ...] = ()
    as_written: bool = False
    cancelled: bool = False
    answered: int = 0
    reused: int = 0
    image_seconds: float = 0.0
    first_seconds: float = 0.0
    submitted: float = field(default_factory=time.monotonic)
