"""Starts the workers and serves until stopped. Free of torch."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.routing import Route

from vlmrun import logs
from vlmrun.errors import LaunchError
from vlmrun.serve.app import make_app
from vlmrun.serve.guard import HEADER_SECONDS, Impatient
from vlmrun.serve.limits import Limits
from vlmrun.serve.messages import Plan
from vlmrun.serve.pool import Pool, Work
from vlmrun.serve.service import Service

log = logs.get(__name__)

_CONNECTIONS = 1000
_DRAIN_SECONDS = 30

Routes = Callable[[Service], Sequence[Route]]


@dataclass(frozen=True)
class Address:
    """Where a server listens, and who may ask it.

    Args:
        port: 0 takes a free one.
        names: hosts that it is reached by beside its address, behind a proxy.
    """

    host: str
    port: int
    key: str | None
    names: tuple[str, ...] = ()

    @property
    def hosts(self) -> list[str]:
        """Names that a client's Host header may hold."""
        if self.host in ("0.0.0.0", "::"):
            return list(self.names) or ["*"]
        return ["localhost", "127.0.0.1", "[::1]", self.host, *self.names]


async def serve(  # noqa: PLR0913 - what a server is given, most of it by name
    plans: Sequence[Plan],
    work: Work,
    address: Address,
    limits: Limits,
    aliases: Mapping[str, str],
    *,
    routes: Sequence[Routes] = (),
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGTERM or SIGINT; answers under way are finished first, a second signal does not wait for them.

    Args:
        work: as `Pool`'s.
        routes: make further routes of the service.
        started: is given the server's URL once questions can be asked.

    Raises:
        LaunchError: when the port is taken.
        VlmrunError: what keeps a worker from starting.
    """
    bound = _bind(address)
    async with _started(plans, work) as pool:
        service = Service(pool, limits, aliases)
        app = make_app(
            service,
            key=address.key,
            hosts=address.hosts,
            more=[route for make in routes for route in make(service)],
        )
        server = _Server(
            uvicorn.Config(
                app,
                http=Impatient,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=HEADER_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
                h11_max_incomplete_event_size=32 * 1024,
            )
        )
        port = bound.getsockname()[1]
        host = f"[{address.host}]" if ":" in address.host else address.host
        server.say = lambda: started(f"http://{host}:{port}")
        await server.serve(sockets=[bound])


class _Server(uvicorn.Server):
    """Says when it listens, and leaves the process's signals as they were when it stops."""

    say: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.say()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _started(plans: Sequence[Plan], work: Work) -> AsyncIterator[Pool]:
    pool = Pool(plans, work)
    try:
        await pool.start()
        yield pool
    finally:
        pool.close()


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise LaunchError(
            f"cannot listen there: {error.strerror or error}",
            f"{address.host}:{address.port}",
            "--port 0 takes a free one",
        ) from error
    return bound
