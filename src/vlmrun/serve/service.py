"""Questions of all routes on their way to the workers and back. Free of torch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from vlmrun import logs
from vlmrun.errors import Problem, VlmrunError, suggest
from vlmrun.serve.guard import Bodies, Scope
from vlmrun.serve.limits import Limits, Refused, bad, refused
from vlmrun.serve.llava_models import Models
from vlmrun.serve.messages import Ask, News, Token, Usage
from vlmrun.serve.metrics import Metrics
from vlmrun.serve.pool import Pool

access = logs.get("vlmrun.serve.access")

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_PLACE = "vlmrun.place"  # in a request's scope: it has been admitted


class Service:
    """Questions of all routes on their way to the workers and back.

    Args:
        aliases: further names of models.

    Attributes:
        others: models of other servers, where a door to them is open.
    """

    def __init__(self, pool: Pool, limits: Limits, aliases: Mapping[str, str]) -> None:
        self.pool = pool
        self.limits = limits
        self.aliases = dict(aliases)
        self.metrics = Metrics()
        self.bodies = Bodies(limits)
        self.others: Models | None = None
        self.admitted = 0
        self.created = int(time.time())

    def name_of(self, model: str) -> str:
        """The model that a client means.

        Raises:
            Refused: when there is none of that name.
        """
        found = self.aliases.get(model, model)
        if found not in self.pool.models and found not in self._others():
            raise bad(
                f"no model {model!r}"[:200],
                "model",
                suggest(model, self.names(), noun="models"),
                404,
                "model_not_found",
            )
        return found

    def names(self) -> list[str]:
        """Of all models: ours, their aliases, those of other servers."""
        ours = [*self.pool.models, *self.aliases]
        return [*ours, *(name for name in self._others() if name not in ours)]

    def facts(self, name: str) -> dict[str, Any]:
        """What a model, by its own name, says of itself."""
        if name in self.pool.models or self.others is None:
            return self.pool.models[name]
        return self.others.facts(name)

    def _others(self) -> list[str]:
        return [] if self.others is None else self.others.names()

    def admit(self, scope: Scope) -> None:
        """Takes a place among those who run or wait; `over` gives it back.

        Raises:
            Refused: when all are taken.
        """
        if self.admitted >= self.limits.running + self.limits.queue:
            problem = Problem("the server has no room for another question", "", "retry after a second")
            raise Refused(429, problem, "queue_full")
        scope[_PLACE] = True
        self.admitted += 1
        self.metrics.running.set(self.admitted)

    def over(self, scope: Scope, status: int) -> None:
        """A request has ended."""
        if scope.pop(_PLACE, False):
            self.admitted -= 1
            self.metrics.running.set(self.admitted)
            if status == 499:
                self.metrics.cancelled.inc()
        known = scope["path"] if scope["path"] in PATHS else "other"
        self.metrics.requests.labels(known, str(status)).inc()
        access.info("%s %s %d %s", scope["method"], known, status, scope.get("vlmrun.user", "-"))

    async def ask(self, request: Request, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, News], None]:
        """News of all questions; ends them when the client leaves or the time is over.

        Raises:
            Refused: when one cannot be answered.
        """
        last: dict[int, Usage] = {}
        far = asks[0].model not in self.pool.models
        answers = self.others.answers(asks) if far and self.others is not None else self.pool.answers(asks)
        try:
            async with asyncio.timeout(self.limits.seconds), contextlib.aclosing(answers) as news:
                async for place, new in news:
                    last[place] = new.usage
                    yield place, new
        except TimeoutError as error:
            problem = Problem(f"the answer took more than {self.limits.seconds} s", "", "ask for fewer tokens")
            raise Refused(503, problem, "timeout") from error
        except VlmrunError as error:
            raise refused(error) from error
        finally:
            for place, usage in last.items():
                self.metrics.answered(asks[place].model, usage)

    async def collect(self, request: Request, asks: Sequence[Ask]) -> tuple[list[str], list[list[Token]], list[News]]:
        """Texts, tokens and last news of all questions."""
        texts = ["" for _ in asks]
        tokens: list[list[Token]] = [[] for _ in asks]
        ends: dict[int, News] = {}
        async with contextlib.aclosing(self.ask(request, asks)) as news:
            async for place, new in news:
                texts[place] += new.text
                tokens[place] += new.tokens
                ends[place] = new
        return texts, tokens, [ends[place] for place in range(len(asks))]


async def until_gone(request: Request) -> None:
    """Returns when the client has left; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Any) -> Any:
    """The result of a coroutine, which is cancelled when the client leaves."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)
