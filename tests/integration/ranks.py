"""Cheap multi-rank tests: fresh gloo ranks forked from a server that has torch, DeepSpeed and transformers imported.

    def test_sum(ranks): assert ranks(add, 2, 20, 22) == [42, 42]

`ranks(function, n, *arguments)` runs a module-level `function(*arguments)` in n new processes that form a process group
over a file store (no ports), and returns what each rank returned. A rank that raises fails the test with its traceback;
one that dies, or hangs, is noticed.
"""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported by the server before it forks. Importing is all that may happen there: no threads, no tensors, no groups.
PRELOADED = ["tests.integration.preload"]
TIMEOUT_SECONDS = 120.0
GRACE_SECONDS = 20.0

# The server does not inherit sys.path, only the environment.
_ROOT = str(Path(__file__).resolve().parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))


class RankError(AssertionError):
    """A rank raised; the text is its traceback."""


def run(
    function: Callable[..., Any], n: int, *arguments: Any, group: bool = True, timeout: float = TIMEOUT_SECONDS
) -> list[Any]:
    """Results of `function(*arguments)` on n fresh ranks, in rank order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        started = [_start(context, (function, arguments, rank, n, folder if group else None)) for rank in range(n)]
        try:
            return _collect(started, time.monotonic() + timeout)
        finally:
            for process, _ in started:
                if process.is_alive():
                    process.kill()
                process.join()


def spawn(function: Callable[..., Any], *arguments: Any) -> Any:
    """Starts one fresh process without a group and returns it at once; for tests that kill it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process, _ = _start(context, (function, arguments, 0, 1, None))
    return process


def _start(context: Any, work: tuple[Any, ...]) -> tuple[Any, multiprocessing.connection.Connection]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, *work))
    process.start()
    theirs.close()
    return process, ours


def _collect(started: list[tuple[Any, Any]], deadline: float) -> list[Any]:
    """Results by rank; after a first failure the others get a little time to say what they saw of it."""
    results: dict[int, Any] = {}
    failures: list[str] = []
    waiting = {connection: rank for rank, (_, connection) in enumerate(started)}
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            failures.append(f"ranks {sorted(waiting.values())} neither finished nor failed in time")
            break
        for connection in ready:
            rank = waiting.pop(connection)
            problem = _receive(connection, started[rank][0], rank, results)
            if problem is not None:
                failures.append(problem)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if failures:
        raise RankError("\n".join(failures))
    return [results[rank] for rank in range(len(started))]


def _receive(connection: Any, process: Any, rank: int, results: dict[int, Any]) -> str | None:
    """Notes a rank's result, or returns what is wrong with it."""
    try:
        kind, value = connection.recv()
    except EOFError:
        process.join()
        return f"rank {rank} died without a word (exit code {process.exitcode})"
    if kind == "error":
        return f"rank {rank}:\n{value}"
    process.join(GRACE_SECONDS)
    if process.exitcode != 0:
        return f"rank {rank} finished but did not leave in order (exit code {process.exitcode})"
    results[rank] = value
    return None


def _child(
    connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, n: int, folder: str | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    try:
        if folder is not None:
            _join(Path(folder) / "store", rank, n)
        value = function(*arguments)
        if folder is not None:
            torch.distributed.barrier()
        connection.send(("value", value))
    except BaseException:  # noqa: BLE001  whatever it is, the test must see it
        connection.send(("error", traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        connection.close()


def _join(store: Path, rank: int, n: int) -> None:
    import torch.distributed

    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(str(store), n),
        rank=rank,
        world_size=n,
        timeout=datetime.timedelta(seconds=30),
    )
