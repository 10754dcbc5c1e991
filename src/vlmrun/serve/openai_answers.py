"""OpenAI's answers: whole, and as pieces of a stream. Free of torch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from vlmrun.serve.messages import News, Token, Usage
from vlmrun.serve.openai import ChatRequest, CompletionRequest


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
