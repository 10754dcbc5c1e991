"""The routes of LLaVA's controller and worker, so that its web page and clients work against our server.

Departures, all in docs/guides/serve.md: a request that is no request gets 400 and not 500; an error's text says what is
wrong; `stop` may be left out, or be a list; images are never ignored; one chunk, not two, says that no worker has a
model; a worker that registers must be on this machine or on a host that was named.

Source: haotian-liu/LLaVA@c121f043 llava/serve/controller.py and model_worker.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vlmrun.data.sample import IMAGE_TAG
from vlmrun.serve import image_parts, openai
from vlmrun.serve.limits import Refused, bad
from vlmrun.serve.llava_bodies import Beat, Generate, Model, Register, Status, sampling_of
from vlmrun.serve.llava_models import Models
from vlmrun.serve.llava_registry import Dispatch, Registry
from vlmrun.serve.messages import Ask
from vlmrun.serve.service import Service

TOO_LONG = "Exceeds max token length. Please start a new conversation, thanks."
BROKEN = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
_MOST_TOKENS = 1024
_SECONDS = 5.0  # that another worker has to answer


class Door:
    """LLaVA's routes over a service of ours and over workers that register.

    Args:
        hosts: hosts beside this machine that workers may register from; `*` is any.
    """

    def __init__(self, service: Service, hosts: Sequence[str] = (), dispatch: Dispatch = "shortest_queue") -> None:
        self.service = service
        self.hosts = hosts
        self.registry = Registry(dispatch)
        service.others = Models(self.registry, service.limits.seconds)

    def routes(self) -> list[Route]:
        """For the application."""
        pairs = {
            "/register_worker": self.register,
            "/refresh_all_workers": self.refresh,
            "/list_models": self.models,
            "/get_worker_address": self.address,
            "/receive_heart_beat": self.beat,
            "/worker_generate_stream": self.generate,
            "/worker_get_status": self.status,
        }
        return [Route(path, endpoint, methods=["POST"]) for path, endpoint in pairs.items()]

    async def register(self, request: Request) -> Response:
        """A worker is there."""
        asked: Register = await self._read(request, Register)
        self._check_host(asked.worker_name)
        status = asked.worker_status or await self._status_of(asked.worker_name)
        if status is not None:
            self.registry.register(
                asked.worker_name,
                tuple(status.model_names),
                status.speed,
                status.queue_length,
                beats=asked.check_heart_beat,
            )
        return JSONResponse(None)

    async def refresh(self, request: Request) -> Response:
        """Asks every worker, and forgets the silent ones."""
        known = self.registry.workers
        states = await asyncio.gather(*(self._status_of(address) for address in known))
        for (address, worker), status in zip(list(known.items()), states, strict=True):
            if status is None:
                del known[address]
            else:
                names = tuple(status.model_names)
                self.registry.register(address, names, status.speed, status.queue_length, beats=worker.beats)
        return JSONResponse(None)

    async def models(self, request: Request) -> Response:
        """Names of all models, ours first."""
        return JSONResponse({"models": self.service.names()})

    async def address(self, request: Request) -> Response:
        """Where a model is asked."""
        asked: Model = await self._read(request, Model)
        if self._is_ours(asked.model):
            return JSONResponse({"address": str(request.base_url).rstrip("/")})
        return JSONResponse({"address": self.registry.choose(asked.model)})

    async def beat(self, request: Request) -> Response:
        """A worker lives."""
        asked: Beat = await self._read(request, Beat)
        return JSONResponse({"exist": self.registry.beat(asked.worker_name, asked.queue_length)})

    async def status(self, request: Request) -> Response:
        """All models, and the sums over ours and the workers that answer."""
        states = [state for state in await asyncio.gather(*map(self._status_of, self.registry.workers)) if state]
        names = {name for state in states for name in state.model_names}
        workers = self.service.pool.workers
        ours = [*self.service.pool.models, *self.service.aliases]
        return JSONResponse(
            {
                "model_names": [*ours, *sorted(names - set(ours))],
                "speed": sum(state.speed for state in states) + len(workers),
                "queue_length": sum(state.queue_length for state in states) + self.service.admitted,
            }
        )

    async def generate(self, request: Request) -> Response:
        """A prompt's continuation: JSON chunks, each with the whole text so far and a NUL byte behind it."""
        body = await self.service.bodies.read(request)
        return StreamingResponse(self._chunks(request, body))

    async def _chunks(self, request: Request, body: bytes) -> AsyncIterator[bytes]:
        try:
            asked: Generate = openai.parse(Generate, body)
            model = asked.model or next(iter(self.service.pool.models), "")
            if not self._is_ours(model):
                async for part in self._passed_on(model, body):
                    yield part
                return
            async with contextlib.aclosing(self._answer(request, asked, self.service.name_of(model))) as texts:
                async for text in texts:
                    yield _chunk(text, 0)
        except Refused as error:
            if error.code == "context_length_exceeded":
                yield _chunk(asked.prompt + TOO_LONG, 0)
            else:
                yield _chunk(error.body["error"]["message"], 1)

    async def _answer(self, request: Request, asked: Generate, model: str) -> AsyncGenerator[str, None]:
        limits = self.service.limits
        images = [
            image_parts.from_base64(text, f"images.{number}", limits) for number, text in enumerate(asked.images or [])
        ]
        if images and asked.prompt.count(IMAGE_TAG) != len(images):
            raise bad(f"{len(images)} images and {asked.prompt.count(IMAGE_TAG)} {IMAGE_TAG}", "images", "one for each")
        if asked.max_new_tokens == 0:
            raise bad("no tokens are asked for", "max_new_tokens", "at least 1", code="context_length_exceeded")
        self.service.admit(request.scope)
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        ask = Ask(
            0,
            model,
            None,
            asked.prompt,
            tuple(images),
            sampling_of(asked),
            min(asked.max_new_tokens, _MOST_TOKENS, limits.tokens),
            limits.tokens,
            tuple(stop for stop in stops if stop),
        )
        text = asked.prompt
        async with contextlib.aclosing(self.service.ask(request, [ask])) as news:
            async for _, new in news:
                text += new.text
                yield text

    async def _passed_on(self, model: str, body: bytes) -> AsyncIterator[bytes]:
        address = self.registry.choose(model)
        if not address:
            yield _chunk(BROKEN, 2)
            return
        try:
            async with (
                httpx.AsyncClient(
                    timeout=httpx.Timeout(self.service.limits.seconds, connect=_SECONDS), trust_env=False
                ) as client,
                client.stream(
                    "POST",
                    f"{address}/worker_generate_stream",
                    content=body,
                    headers={"content-type": "application/json"},
                ) as answer,
            ):
                async for part in answer.aiter_bytes():
                    yield part
        except httpx.HTTPError:
            yield _chunk(BROKEN, 3)

    async def _status_of(self, address: str) -> Status | None:
        """What a worker says; None when it does not answer, or says something else."""
        try:
            async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False) as client:
                answer = await client.post(f"{address}/worker_get_status")
            return Status.model_validate(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None

    def _is_ours(self, model: str) -> bool:
        return model in self.service.pool.models or model in self.service.aliases

    def _check_host(self, address: str) -> None:
        """A worker that registers makes this server connect to it."""
        parts = urlsplit(address)
        host = parts.hostname or ""
        if parts.scheme != "http" and parts.scheme != "https":
            raise bad("a worker's name is not its address", "worker_name", "http://HOST:PORT")
        if host not in ("localhost", "127.0.0.1", "::1", *self.hosts) and "*" not in self.hosts:
            raise bad(
                f"workers on {host[:100]!r} are not taken", "worker_name", f"start with --llava-workers {host[:100]}"
            )

    async def _read(self, request: Request, kind: type[BaseModel]) -> Any:
        return openai.parse(kind, await self.service.bodies.read(request))


def _chunk(text: str, code: int) -> bytes:
    return json.dumps({"text": text, "error_code": code}).encode() + b"\0"
