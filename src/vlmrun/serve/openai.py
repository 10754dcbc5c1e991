"""OpenAI's requests and answers, as far as they have an effect here; anything else is refused. Free of torch."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.serve.limits import Limits, Refused, bad
from vlmrun.serve.messages import News, Sampling, Token, Usage

_NEUTRAL: dict[str, Any] = {  # values that other clients send and that change nothing
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(_Strict):
    """Where an image is."""

    url: str
    detail: Literal["auto"] | None = None


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: None = None


class StreamOptions(_Strict):
    """What a stream brings beside the answer."""

    include_usage: bool = False


class _Asked(_Strict):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | list[Annotated[str, Field(min_length=1, max_length=200)]]
        | None
    ) = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None  # stands in the access log

    @field_validator("stop")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError("at most 4 strings")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, top_logprobs: int | None) -> Sampling:
        """How tokens are chosen; what is not given is as OpenAI has it, but greedy."""
        return Sampling(
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            top_logprobs=top_logprobs,
        )


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def top(self) -> int | None:
        """Alternatives asked for beside each token."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Asked):
    """POST /v1/completions."""

    prompt: str
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def top(self) -> int | None:
        """Alternatives asked for beside each token."""
        return self.logprobs


def parse(kind: type[BaseModel], body: bytes) -> Any:
    """A request of this kind.

    Raises:
        Refused: naming the first thing that is wrong.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not JSON: {str(error)[:200]}", "body", "send JSON", code="invalid_json") from error
    if not isinstance(value, dict):
        raise bad("the body is not a JSON object", "body", "send a JSON object", code="invalid_json")
    for key, neutral in _NEUTRAL.items():
        if key in value and key not in kind.model_fields and value.pop(key) not in neutral:
            raise bad(f"{key} is not supported", key, "leave it out", code="unsupported_parameter")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise bad("a string holds half a character", "body", "send whole characters of Unicode") from error
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        unknown = first["type"] == "extra_forbidden"
        known = ", ".join(sorted(kind.model_fields))
        what = f"unknown parameter {where!r}" if unknown else f"{where}: {first['msg']}"
        fix = f"known: {known}" if unknown else "correct it"
        raise bad(what[:500], where[:200], fix, code="unknown_parameter" if unknown else "invalid_value") from error


def conversation(messages: Sequence[Message]) -> tuple[tuple[Turn, ...], list[tuple[str, str]]]:
    """Turns with an image tag for every image, and where each image is: its URL and its place in the request.

    A template has a system text of its own, which the model was trained with: a system message stands before the
    first question. Messages of one side that follow each other are one turn, a line apart.

    Raises:
        Refused: when the last message is not the user's, or an image is not.
    """
    images: list[tuple[str, str]] = []
    sides: list[tuple[str, list[str], int]] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}.content"
        side = "assistant" if message.role == "assistant" else "user"
        texts, urls = _parts(message, where)
        if urls and side == "assistant":
            raise bad("an answer holds an image", where, "send images with questions")
        images += urls
        if sides and sides[-1][0] == side:
            sides[-1] = (side, sides[-1][1] + texts, sides[-1][2] + len(urls))
        else:
            sides.append((side, texts, len(urls)))
    if sides[-1][0] != "user":
        raise bad("the last message is not a question", "messages", "end with a message of role user")
    if sides[0][0] != "user":
        raise bad("the first message is an answer", "messages", "begin with a message of role user")
    turns = [Turn("user" if side == "user" else "assistant", _text(texts, n)) for side, texts, n in sides]
    return tuple(turns), images


def _parts(message: Message, where: str) -> tuple[list[str], list[tuple[str, str]]]:
    if isinstance(message.content, str):
        parts: list[Any] = [TextPart(type="text", text=message.content)]
    else:
        parts = message.content
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if any(IMAGE_TAG in text for text in texts):
        raise bad(f"{IMAGE_TAG} stands in the text", where, "leave it out and send the image itself")
    urls = [
        (part.image_url.url, f"{where}.{at}.image_url.url")
        for at, part in enumerate(parts)
        if isinstance(part, ImagePart)
    ]
    return texts, urls


def _text(texts: Sequence[str], n_images: int) -> str:
    text = "\n".join(text for text in texts if text)
    return (f"{IMAGE_TAG}\n" * n_images + text).strip() if n_images else text


class Shape:
    """How answers of one route look: whole, and as pieces of a stream."""

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self.is_chat = isinstance(request, ChatRequest)
        self.wants_logprobs = request.top is not None
        self.base = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": None,
        }

    def whole(self, answers: Sequence[tuple[str, list[Token], str]], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer of a request that is not streamed: text, tokens and reason of the end of every choice."""
        choices = [
            {
                "index": index,
                **self._content(text, whole=True),
                "logprobs": self._logprobs(tokens),
                "finish_reason": end,
            }
            for index, (text, tokens, end) in enumerate(answers)
        ]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self.base, "object": kind, "choices": choices, "usage": usage}

    def first(self, index: int) -> dict[str, Any]:
        """The piece that names the role."""
        return self._piece([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(self, index: int, news: News) -> dict[str, Any]:
        """What is new of one choice."""
        content = self._content(news.text, whole=False)
        return self._piece(
            [
                {
                    "index": index,
                    **content,
                    "logprobs": self._logprobs(list(news.tokens)),
                    "finish_reason": news.finish,
                }
            ]
        )

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last piece, under `stream_options.include_usage`."""
        return {**self._piece([]), "usage": usage}

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self.base, "object": kind, "choices": choices}

    def _content(self, text: str, *, whole: bool) -> dict[str, Any]:
        if not self.is_chat:
            return {"text": text}
        if whole:
            return {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        if self.is_chat:
            return {
                "content": [{**_entry(t.text, t.logprob), "top_logprobs": [_entry(*o) for o in t.top]} for t in tokens]
            }
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": None,
        }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def usage_of(all_: Sequence[Usage]) -> dict[str, Any]:
    """Tokens of all choices; the prompt counts once."""
    completion = sum(usage.completion for usage in all_)
    prompt = all_[0].prompt
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": all_[0].reused},
    }


def check_bounds(request: ChatRequest | CompletionRequest, n_images: int, limits: Limits) -> int | None:
    """Tokens that were asked for, None when left to the server.

    Raises:
        Refused: for more than the server gives.
    """
    asked = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        asked = request.max_completion_tokens
    _bound(asked or 1, limits.tokens, "max_tokens")
    _bound(request.n or 1, limits.choices, "n")
    _bound(n_images, limits.images, "messages", "images")
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options is of streams", "stream_options", "leave it out, or set stream to true")
    if isinstance(request, ChatRequest) and request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs", "top_logprobs", "set logprobs to true")
    return asked


def _bound(value: int, most: int, where: str, noun: str = "") -> None:
    if value > most:
        raise bad(f"{where}: {value} {noun}".strip() + f" is more than this server's {most}", where, f"at most {most}")


__all__ = ["ChatRequest", "CompletionRequest", "Refused", "Shape", "check_bounds", "conversation", "parse", "usage_of"]
