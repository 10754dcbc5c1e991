"""A conversation of the page: what was said, and how the server is asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vlmrun.data.images.loading import load_image
from vlmrun.data.images.seeing import ON_WHITE, View, view_of
from vlmrun.errors import DataError
from vlmrun.serve.web.images import data_url, prepared

_PAUSE = 0.1  # between two looks at the answer: every one draws the whole conversation
_SECONDS = httpx.Timeout(600, connect=5)


@dataclass
class Exchange:
    """A question, its images' files, and the answer of every side; None where a side was not asked."""

    text: str
    images: list[str]
    answers: list[str | None]


@dataclass
class Talk:
    """What was said so far, and the models of its sides."""

    said: list[Exchange] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def shown(self, side: int) -> list[dict[str, Any]]:
        """One side, as gradio's chatbot takes it."""
        rows: list[dict[str, Any]] = []
        for exchange in self.said:
            if side >= len(exchange.answers) or exchange.answers[side] is None:
                continue
            rows += [{"role": "user", "content": {"path": path}} for path in exchange.images]
            rows.append({"role": "user", "content": exchange.text})
            rows.append({"role": "assistant", "content": exchange.answers[side] or ""})
        return rows

    def at(self, side: int, row: int) -> int | None:
        """The exchange that a row of `shown` belongs to."""
        n = -1
        for number, exchange in enumerate(self.said):
            if side < len(exchange.answers) and exchange.answers[side] is not None:
                n += len(exchange.images) + 2
                if row <= n:
                    return number
        return None

    def saved(self) -> list[dict[str, Any]]:
        """For the download: images by the names of their files."""
        return [
            {
                "question": exchange.text,
                "images": [Path(path).name for path in exchange.images],
                "answers": dict(zip(self.models, exchange.answers, strict=False)),
            }
            for exchange in self.said
        ]


@dataclass(frozen=True)
class Values:
    """What the page's sliders say."""

    temperature: float
    top_p: float
    max_tokens: int
    mode: str


class Server:
    """The server's HTTP API."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.views: dict[str, View] = {}  # how each model sees images

    def models(self) -> list[str]:
        """Names of its models; none when it does not answer."""
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=self.headers, timeout=5, trust_env=False)
            self.views = {model["id"]: view_of(model["image_background"]) for model in answer.json()["data"]}
            return list(self.views)
        except (httpx.HTTPError, ValueError, KeyError):
            return []

    async def answer(self, talk: Talk, side: int, values: Values) -> AsyncIterator[str]:
        """Pieces of the answer to the last question; what went wrong is the last piece."""
        try:
            body = _body(talk, side, values, self.views.get(talk.models[side], ON_WHITE))
        except DataError as error:
            yield f"⚠ {error.problems[0].what}"
            return
        try:
            async with (
                httpx.AsyncClient(timeout=_SECONDS, headers=self.headers, trust_env=False) as client,
                client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    yield _problem(await answer.aread())
                    return
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        yield _piece(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            yield f"⚠ the server does not answer: {error}"

    async def answers(self, talk: Talk, values: Values) -> AsyncIterator[None]:
        """Fills in the last exchange's answers, all sides at once; yields whenever there is something new."""
        exchange = talk.said[-1]
        news: asyncio.Queue[int | None] = asyncio.Queue()

        async def fill(side: int) -> None:
            async for piece in self.answer(talk, side, values):
                exchange.answers[side] = (exchange.answers[side] or "") + piece
                news.put_nowait(None)
            news.put_nowait(side)

        tasks = [asyncio.create_task(fill(side)) for side in range(len(talk.models))]
        try:
            left = len(tasks)
            while left:
                left -= await news.get() is not None
                await asyncio.sleep(_PAUSE)
                while not news.empty():
                    left -= news.get_nowait() is not None
                yield
        finally:
            for task in tasks:
                task.cancel()


class Log:
    """Conversations and votes, one JSON line each; LLaVA's page's fields.

    Args:
        path: None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, kind: str, talk: Talk, number: int, side: int, **more: Any) -> None:
        """Notes a `chat`, `upvote`, `downvote` or `flag`."""
        if self.path is None or not 0 <= number < len(talk.said):
            return
        exchange = talk.said[number]
        row = {
            "tstamp": round(time.time(), 4),
            "type": kind,
            "model": talk.models[side],
            "state": {"messages": _messages(talk, side, number)},
            "images": [
                hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() for path in exchange.images
            ],
            **more,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _messages(talk: Talk, side: int, number: int) -> list[list[str | None]]:
    rows: list[list[str | None]] = []
    for exchange in talk.said[: number + 1]:
        rows += [["user", exchange.text], ["assistant", exchange.answers[side]]]
    return rows


def _body(talk: Talk, side: int, values: Values, view: View) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for exchange in talk.said:
        if side >= len(exchange.answers) or exchange.answers[side] is None:
            continue
        images = [data_url(prepared(load_image(Path(path), view=view), values.mode)) for path in exchange.images]
        parts: Sequence[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": exchange.text}]})
        messages.append({"role": "assistant", "content": exchange.answers[side]})
    sampling = {"temperature": values.temperature, **({"top_p": values.top_p} if values.temperature > 0 else {})}
    return {
        "model": talk.models[side],
        "messages": messages[:-1],
        "stream": True,
        "max_tokens": values.max_tokens,
        **sampling,
    }


def _piece(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        return f"\n\n⚠ {chunk['error']['message']}"
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _problem(body: bytes) -> str:
    try:
        return f"⚠ {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return "⚠ the server's answer is not understood"
