"""The HTTP side: OpenAI's routes over the workers. Free of torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vlmrun import logs
from vlmrun.errors import Problem
from vlmrun.serve import image_parts, openai
from vlmrun.serve.guard import Guard
from vlmrun.serve.limits import Refused
from vlmrun.serve.messages import Ask, News, Usage
from vlmrun.serve.openai_answers import Shape, usage_of
from vlmrun.serve.service import PATHS, Service, unless_gone

log = logs.get(__name__)
access = logs.get("vlmrun.serve.access")


class OpenAI:
    """OpenAI's routes."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self.service.bodies.read(request)
        asked: openai.ChatRequest = openai.parse(openai.ChatRequest, body)
        turns, places = openai.conversation(asked.messages)
        return await self._answer(request, asked, {"turns": turns, "prompt": ""}, places)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions: the text continues as it is, without the model's template."""
        body = await self.service.bodies.read(request)
        asked: openai.CompletionRequest = openai.parse(openai.CompletionRequest, body)
        return await self._answer(request, asked, {"turns": None, "prompt": asked.prompt}, [])

    async def _answer(
        self, request: Request, asked: Any, content: dict[str, Any], places: Sequence[tuple[str, str]]
    ) -> Response:
        service = self.service
        model = service.name_of(asked.model)
        max_tokens = openai.check_bounds(asked, len(places), service.limits)
        service.admit(request.scope)
        if asked.user:
            request.scope["vlmrun.user"] = repr(asked.user)
        images = [await image_parts.fetch(url, where, service.limits) for url, where in places]
        base = asked.sampling(asked.top)
        asks = [
            Ask(
                0,
                model,
                images=tuple(images),
                sampling=_seeded(base, choice),
                max_tokens=max_tokens,
                most_tokens=service.limits.tokens,
                stop=asked.stops,
                **content,
            )
            for choice in range(asked.n or 1)
        ]
        shape = Shape(asked)
        if not asked.stream:
            texts, tokens, ends = await unless_gone(request, service.collect(request, asks))
            usage = usage_of([end.usage for end in ends])
            return JSONResponse(
                shape.whole(list(zip(texts, tokens, [str(end.finish) for end in ends], strict=True)), usage)
            )
        news = service.ask(request, asks)
        first = await unless_gone(request, anext(news))  # what cannot be asked is refused before the stream begins
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_events(shape, first, news, with_usage=with_usage), media_type="text/event-stream")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.service.names()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        self.service.name_of(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        root = self.service.name_of(name)
        facts = self.service.facts(root)
        return {
            "id": name,
            "object": "model",
            "created": self.service.created,
            "owned_by": "vlmrun",
            "root": root,
            "max_model_len": facts["context"],
            "image_background": facts["image_background"],
        }


def _seeded(sampling: Any, choice: int) -> Any:
    """Every choice of a request has a seed of its own, the first one the request's."""
    return sampling if sampling.seed is None else dataclasses.replace(sampling, seed=sampling.seed + choice)


async def _events(
    shape: Shape, first: tuple[int, News], news: AsyncGenerator[tuple[int, News], None], *, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of a stream; an error in mid-stream is one of them, and the last."""
    known: dict[int, Usage] = {}
    try:
        async for place, new in _after(first, news):
            if place not in known and shape.is_chat:
                yield _event(shape.first(place))
            known[place] = new.usage
            if new.text or new.tokens or new.finish:
                yield _event(shape.piece(place, new))
        if with_usage:
            yield _event(shape.usage(usage_of([known[place] for place in sorted(known)])))
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield _event(error.body)


async def _after(
    first: tuple[int, News], rest: AsyncGenerator[tuple[int, News], None]
) -> AsyncIterator[tuple[int, News]]:
    async with contextlib.aclosing(rest):
        yield first
        async for item in rest:
            yield item


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def make_app(service: Service, *, key: str | None, hosts: Sequence[str], more: Sequence[Route] = ()) -> Starlette:
    """The server's application.

    Args:
        hosts: names that clients may call it by; a page of another site that was pointed here is refused.
        more: further routes.
    """
    door = OpenAI(service)

    async def health(request: Request) -> Response:
        ready = sum(worker.ready for worker in service.pool.workers)
        state = {"status": "ok" if ready else "starting", "workers": len(service.pool.workers), "ready": ready}
        return JSONResponse(state, 200 if ready else 503)

    async def metrics(request: Request) -> Response:
        service.metrics.restarts.inc(service.pool.restarts - service.metrics.restarts._value.get())
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", door.chat, methods=["POST"]),
            Route("/v1/completions", door.complete, methods=["POST"]),
            Route("/v1/models", door.models),
            Route("/v1/models/{name:path}", door.model),
            Route("/health", health),
            Route("/metrics", metrics),
            *more,
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(Guard, key=key, over=service.over),
        ],
        exception_handlers={
            Refused: _refuse,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
        },
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status, error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(f"{request.method} {request.url.path[:200]}: {error.detail}", "", f"routes: {', '.join(PATHS)}")
    return JSONResponse(Refused(error.status_code, problem, "not_found").body, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
