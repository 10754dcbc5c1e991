"""A node that is not the first: starts its ranks when node 0 says so (the talk between them stands in `crew`)."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmrun import __version__, logs
from vlmrun.cluster.channel import Guard, Line
from vlmrun.cluster.node import Node
from vlmrun.errors import LaunchError, error_from_dict

log = logs.get(__name__)

_SECONDS_TO_CONNECT = 30.0
_SECONDS_BETWEEN_TRIES = 0.5
_TRIES_TO_SEE = 20
SHARED = "the output folder must be one that all nodes share, under the same path: output=FOLDER"

# Of a stage's name, an attempt, a port and what ends it early: starts this node's ranks and returns their exit code.
Start = Callable[[str, int, int, Guard], int]


def follow(node: Node, root: Path, keys: dict[str, str], timeout: float, start: Start) -> None:
    """Starts ranks until node 0 says how the run went.

    Args:
        root: the output root.
        keys: of the run's stages; node 0 must have the same.
        timeout: seconds that node 0 may take to be there.

    Raises:
        VlmrunError: node 0's own error, or a LaunchError when it cannot be reached or is gone.
        KeyboardInterrupt: when node 0 was stopped.
    """
    line = _reach(node, timeout)
    try:
        _greet(line, node, root, keys)
        log.info("node %d: joined node 0 at %s:%d", node.rank, node.master, node.port)
        _obey(line, node, keys, start)
    finally:
        line.close()


def _obey(line: Line, node: Node, keys: dict[str, str], start: Start) -> None:
    said: queue.Queue[dict[str, Any] | None] = queue.Queue()
    guard = Guard()

    def listen() -> None:
        message: dict[str, Any] | None = {}
        while message is not None:
            message = line.receive()
            said.put(message)
            guard.end_soon()  # whatever it is: node 0 has done with the job that our ranks are still at

    threading.Thread(target=listen, daemon=True).start()
    while (message := said.get()) is not None:
        if message.get("start") in keys:
            name, attempt = str(message["start"]), int(message["attempt"])
            log.info("node %d: starts its ranks of %s", node.rank, name)
            code = start(name, attempt, int(message["port"]), guard)
            with contextlib.suppress(OSError):  # what became of node 0 is read next
                line.send({"ended": name, "attempt": attempt, "code": code})
        elif "finished" in message:
            return
        elif "failed" in message:
            raise error_from_dict(message["failed"])
        elif "stopped" in message:
            raise KeyboardInterrupt(message["stopped"])
    raise LaunchError(
        "node 0 is gone", f"{node.master}:{node.port}", "see what it said; the same command on all nodes resumes"
    )


def _reach(node: Node, timeout: float) -> Line:
    """A connection to node 0, which may not be there yet."""
    ends = time.monotonic() + timeout
    while True:
        try:
            return Line(socket.create_connection((node.master, node.port), timeout=_SECONDS_TO_CONNECT))
        except OSError as error:
            if time.monotonic() >= ends:
                raise LaunchError(
                    f"node 0 cannot be reached: {error.strerror or error}",
                    f"{node.master}:{node.port}",
                    "is it running? MASTER_ADDR is its name, MASTER_PORT a port that is open between the nodes",
                ) from error
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _greet(line: Line, node: Node, root: Path, keys: dict[str, str]) -> None:
    line.send({"node": node.rank, "host": socket.gethostname(), "version": __version__, "keys": keys})
    answer = line.receive()  # node 0 may be busy with another node
    if answer is None:
        raise LaunchError("node 0 has hung up", f"{node.master}:{node.port}", "see what it said")
    if "failed" in answer:
        raise error_from_dict(answer["failed"])
    token = Path(str(answer.get("token")))
    # Only a file right below our own output root is looked at.
    sees = token.parent == root and _reads(token) == answer.get("text")
    line.send({"sees": sees})
    if not sees:
        raise LaunchError(f"this node does not see {token}, which node 0 has written", "output", SHARED)


def _reads(path: Path) -> str | None:
    """A file's text; network file systems may take some seconds to show it."""
    for _ in range(_TRIES_TO_SEE):
        with contextlib.suppress(OSError, ValueError):
            return path.read_text("utf-8")
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return None
