"""Bounds on what a connection may do before its request is looked at: who may ask, how much, how slowly."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmrun.errors import Problem
from vlmrun.serve.limits import Limits, Refused, bad

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

HEADER_SECONDS = 10  # for the head of a request, and between two requests of a connection
_BODIES = 32  # bodies read at a time
OPEN = ("/health",)  # needs no key


class Impatient(H11Protocol):
    """uvicorn's HTTP protocol, and a bound on the time a request's head may take."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._patience is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Guard:
    """Asks for the key, and gives back the place that a request had when it is over, however it ends.

    Args:
        key: what clients send as `Authorization: Bearer KEY`; None lets everyone ask.
    """

    def __init__(self, app: Any, key: str | None, over: Callable[[Scope, int], None]) -> None:
        self.app = app
        self.key = key
        self.over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client left before an answer began

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self.allows(scope):
                await self.app(scope, receive, noting)
            else:
                error = Refused(
                    401, Problem("no valid API key", "", "send Authorization: Bearer KEY"), "invalid_api_key"
                )
                response = JSONResponse(error.body, 401, {"WWW-Authenticate": "Bearer"})
                await response(scope, receive, noting)
        finally:
            self.over(scope, status)

    def allows(self, scope: Scope) -> bool:
        """Whether a request may pass."""
        if self.key is None or scope["path"] in OPEN:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(sent, f"Bearer {self.key}".encode())


class Bodies:
    """Reads bodies: N at a time, no larger and no slower than allowed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._room = asyncio.Semaphore(_BODIES)

    async def read(self, request: Request) -> bytes:
        """The body of a request that says it is JSON.

        Raises:
            Refused: when it is too large, too slow, or something else.
        """
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            # Also what keeps other sites' pages from asking through the user's browser: they cannot send this type.
            raise bad("the content type is not JSON", "Content-Type", "application/json")
        most = self.limits.body_mb * 2**20
        if int(request.headers.get("content-length", "0")) > most:
            raise self._too_large()
        try:
            async with self._room, asyncio.timeout(self.limits.body_seconds):
                body = bytearray()
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise self._too_large()
                return bytes(body)
        except TimeoutError as error:
            raise bad("the body took too long", "body", f"send it within {self.limits.body_seconds} s", 408) from error

    def _too_large(self) -> Refused:
        return bad("the body is too large", "body", f"at most {self.limits.body_mb} MiB", 413, "body_too_large")
