"""The worker processes: questions go to the one with the fewest, and one that dies is started again. Free of torch."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from vlmrun import logs
from vlmrun.errors import LaunchError, error_from_dict
from vlmrun.serve.messages import Ask, Cancel, Failed, News, Plan, Ready

log = logs.get(__name__)

_AGAIN_SECONDS = (0.0, 0.5, 2.0, 10.0)  # before a worker that keeps dying is started again
_LOADED = "vlmrun.serve.worker"  # by the process that workers are forked from: it loads torch

Work = Callable[[Connection, Plan], None]


@dataclass
class _Pending:
    """A question on its way; `told` when its answer has begun, after which it cannot be asked again."""

    ask: Ask
    put: Callable[[News | Exception], None]
    told: bool = False


class Worker:
    """One process, and the questions it has."""

    def __init__(self, pool: Pool, plan: Plan, number: int) -> None:
        self.pool = pool
        self.plan = plan
        self.number = number
        self.pending: dict[int, _Pending] = {}
        self.ready = False
        self.deaths = 0
        self.process: Any = None
        self._pipe: Connection | None = None
        self._outgoing: asyncio.Queue[Ask | Cancel | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the process; it is `ready` when its models are loaded."""
        ours, theirs = multiprocessing.Pipe()
        self.process = self.pool.context.Process(target=self.pool.work, args=(theirs, self.plan), daemon=True)
        self.process.start()
        theirs.close()
        self._pipe = ours
        self._outgoing = asyncio.Queue()
        self._writer = asyncio.create_task(self._write(ours, self._outgoing))
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(ours, loop), daemon=True).start()

    def send(self, message: Ask | Cancel) -> None:
        """Hands a message over, in order."""
        self._outgoing.put_nowait(message)

    def close(self) -> None:
        """Closes the pipe, at which the process ends."""
        self._outgoing.put_nowait(None)
        if self.process is not None:
            self.process.terminate()

    async def _write(self, pipe: Connection, outgoing: asyncio.Queue[Ask | Cancel | None]) -> None:
        while (message := await outgoing.get()) is not None:
            try:
                await asyncio.to_thread(pipe.send, message)
            except OSError:
                return  # it died, which the reader reports

    def _read(self, pipe: Connection, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while True:
                message = pipe.recv()
                loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError):
            pass
        except RuntimeError:  # the loop has closed: the server is gone
            return
        try:
            loop.call_soon_threadsafe(self._died)
        except RuntimeError:
            return

    def _take(self, message: Ready | Failed | list[News | Failed]) -> None:
        if isinstance(message, Ready):
            self.ready, self.deaths = True, 0
            self.pool.on_ready(message)
        elif isinstance(message, Failed):
            self.pool.on_failed(error_from_dict(message.error))
        else:
            for new in message:
                self._pass_on(new)

    def _pass_on(self, new: News | Failed) -> None:
        pending = self.pending.get(new.id)
        if pending is None:  # its client has left
            return
        if isinstance(new, Failed):
            del self.pending[new.id]
            pending.put(error_from_dict(new.error))
            return
        pending.told = True
        if new.finish is not None:
            del self.pending[new.id]
        pending.put(new)

    def _died(self) -> None:
        self.ready = False
        if self._writer is not None:
            self._outgoing.put_nowait(None)
        lost, self.pending = self.pending, {}
        if not self.pool.closing:
            self.pool.on_death(self, list(lost.values()))


class Pool:
    """All workers.

    Args:
        work: what each process does (`back.serve_worker`).

    Attributes:
        models: what each model says of itself, once a worker has loaded it.
        restarts: how many workers were started again.
    """

    def __init__(self, plans: Sequence[Plan], work: Work) -> None:
        # A process that has imported torch and nothing else is forked for every worker: one is back within seconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([_LOADED])
        self.work = work
        self.workers = [Worker(self, plan, number) for number, plan in enumerate(plans)]
        self.models: dict[str, dict[str, Any]] = {}
        self.restarts = 0
        self.closing = False
        self._ids = itertools.count()
        self._started = asyncio.Event()
        self._error: Exception | None = None

    async def start(self) -> None:
        """Returns when every worker has loaded its models.

        Raises:
            VlmrunError: what kept one from it.
        """
        for worker in self.workers:
            worker.start()
        await self._started.wait()
        if self._error is not None:
            self.close()
            raise self._error

    def close(self) -> None:
        """Ends all workers."""
        self.closing = True
        for worker in self.workers:
            worker.close()

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, News], None]:
        """News of all questions as it comes, with the question's place; leaving early cancels what is unanswered.

        Raises:
            VlmrunError: when a question cannot be answered, or its worker died after the answer had begun.
        """
        queue: asyncio.Queue[tuple[int, News | Exception]] = asyncio.Queue()
        ids = []

        def put(place: int, news: News | Exception) -> None:
            queue.put_nowait((place, news))

        try:
            for place, ask in enumerate(asks):
                numbered = replace(ask, id=next(self._ids))
                ids.append(numbered.id)
                self._give(_Pending(numbered, partial(put, place)))
            left = len(asks)
            while left:
                place, news = await queue.get()
                if isinstance(news, Exception):
                    raise news
                left -= news.finish is not None
                yield place, news
        finally:
            for worker in self.workers:
                for id in set(ids) & worker.pending.keys():
                    del worker.pending[id]
                    worker.send(Cancel(id))

    def _give(self, pending: _Pending) -> None:
        ready = [worker for worker in self.workers if worker.ready]
        if not ready:
            pending.put(LaunchError("no worker is ready", "the server", "retry in a few seconds"))
            return
        worker = min(ready, key=lambda worker: len(worker.pending))
        worker.pending[pending.ask.id] = pending
        worker.send(pending.ask)

    def on_ready(self, message: Ready) -> None:
        """A worker has loaded its models."""
        self.models = message.models
        if all(worker.ready for worker in self.workers):
            self._started.set()

    def on_failed(self, error: Exception) -> None:
        """A worker cannot load its models."""
        log.error("%s", error)
        self._error = error
        self._started.set()

    def on_death(self, worker: Worker, lost: list[_Pending]) -> None:
        """Starts a worker again; what it had not begun to answer is asked elsewhere."""
        if not self._started.is_set():
            self.on_failed(LaunchError(f"worker {worker.number} died while it loaded", "", "look at its output above"))
            return
        worker.process.join(1)
        code = worker.process.exitcode
        log.warning(
            "worker %d died (exit code %s) with %d questions; starting it again", worker.number, code, len(lost)
        )
        self.restarts += 1
        delay = _AGAIN_SECONDS[min(worker.deaths, len(_AGAIN_SECONDS) - 1)]
        worker.deaths += 1
        asyncio.get_running_loop().call_later(delay, self._again, worker)
        for pending in lost:
            if pending.told or not any(other.ready for other in self.workers):
                pending.put(LaunchError("the worker that was answering died", "the server", "ask again"))
            else:
                self._give(pending)

    def _again(self, worker: Worker) -> None:
        if not self.closing:
            worker.start()
