"""Several nodes, one run: node 0 leads, the others start their ranks of a job when it says so.

Every node runs the same command, on a shared file system. Node 0 alone takes locks, writes files and decides what is
reused; prepare, merge and average happen there. The others connect to it (`nodes.Node`), show that they see
the same files and would run the same stages, and then wait. Everything is said in lines of JSON:

    follower -> leader   {"node": 1, "host": ..., "version": ..., "keys": {stage: key}}
    leader -> follower   {"token": FILE, "text": ...}                   on the shared file system
    follower -> leader   {"sees": true}
    leader -> follower   {"start": STAGE, "attempt": 0, "port": 41234}  any number of times
    follower -> leader   {"ended": STAGE, "attempt": 0, "code": 0}
    leader -> follower   {"finished": null}, {"failed": ERROR} or {"stopped": WORDS}

A follower starts what is named by a stage of its own configuration, never by a command. A connection that
closes says that a node is gone; no node waits for a file that may never come.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import __version__, artifact, logs
from vlmrun.cluster.channel import Guard, Line
from vlmrun.cluster.follower import SHARED
from vlmrun.cluster.node import ALONE, LOOPBACK, Node
from vlmrun.errors import LaunchError, Problem, VlmrunError

log = logs.get(__name__)

_SECONDS_TO_GREET = 30.0


class Crew:
    """The other nodes, as node 0 sees them. Without any, everything here does nothing.

    Attributes:
        node: this one, node 0.
        guard: ends our ranks when those of another node will not continue.
    """

    def __init__(self, node: Node = ALONE, lines: dict[int, Line] | None = None) -> None:
        self.node = node
        self.guard = Guard()
        self._lines = lines or {}
        self._started: tuple[str, int] | None = None
        self._gone: int | None = None
        for rank, line in self._lines.items():
            threading.Thread(target=self._listen, args=(rank, line), daemon=True).start()

    def start(self, stage: str, attempt: int, port: int) -> None:
        """Has every node start its ranks of a job.

        Raises:
            LaunchError: when a node is gone.
        """
        self.require()
        self._started = (stage, attempt)
        for rank, line in self._lines.items():
            try:
                line.send({"start": stage, "attempt": attempt, "port": port})
            except OSError:
                self._gone = rank
        self.require()

    def require(self) -> None:
        """Raises a LaunchError when a node is gone: without it no job can be started, or started again."""
        if self._gone is not None:
            raise LaunchError(
                f"node {self._gone} has left the run",
                "hardware.nodes",
                "see what it said there; the same command on all nodes resumes",
            )

    def tell(self, message: dict[str, Any]) -> None:
        """Says the last word to every node that still listens, and hangs up."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.send(message)
            line.close()

    def _listen(self, rank: int, line: Line) -> None:
        """A thread for each node."""
        while (message := line.receive()) is not None:
            if message.get("code") and (message.get("ended"), message.get("attempt")) == self._started:
                log.info("node %d: its ranks of %s ended with exit code %s", rank, message["ended"], message["code"])
                self.guard.end_soon()
        if rank in self._lines:  # it is not we who have hung up
            self._gone = rank
            self.guard.end_soon()


NOBODY = Crew()


@contextlib.contextmanager
def lead(node: Node, root: Path, keys: dict[str, str], timeout: float) -> Iterator[Crew]:
    """Node 0: waits for the others, and tells them at the end how it went.

    Args:
        root: the output root.
        timeout: seconds that nodes may take to come.

    Raises:
        LaunchError: when one does not come, or would do something else than this one.
    """
    if node.n_nodes == 1:
        yield Crew(node)
        return
    crew = Crew(node, _gather(node, root, keys, timeout))
    try:
        yield crew
    except VlmrunError as error:
        crew.tell({"failed": error.to_dict()})
        raise
    except KeyboardInterrupt as stopped:
        crew.tell({"stopped": str(stopped)})
        raise
    except BaseException as error:
        crew.tell({"failed": LaunchError(f"node 0 failed: {error}").to_dict()})
        raise
    crew.tell({"finished": None})


@dataclass(frozen=True)
class _Ours:
    """What the others are compared with: keys, and a file that only a shared file system shows them."""

    n_nodes: int
    keys: dict[str, str]
    token: Path
    text: str


def _gather(node: Node, root: Path, keys: dict[str, str], timeout: float) -> dict[int, Line]:
    """A connection to every other node, each checked."""
    found: dict[int, Line] = {}
    ends = time.monotonic() + timeout
    n_nodes = node.n_nodes
    ours = _Ours(n_nodes, keys, root / f".nodes-{secrets.token_hex(8)}", secrets.token_hex(16))
    artifact.write_text(ours.token, ours.text)
    try:
        with _listening(LOOPBACK if node.master in ("localhost", LOOPBACK) else "", node.port) as server:
            log.info("waiting for %d other node(s) at %s:%d", n_nodes - 1, node.master, node.port)
            while len(found) < n_nodes - 1:
                server.settimeout(max(ends - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    absent = ", ".join(str(rank) for rank in range(1, n_nodes) if rank not in found)
                    raise LaunchError(
                        f"node(s) {absent} did not come within {timeout:.0f} s",
                        f"{node.master}:{node.port}",
                        "start the same command there, or see what it says; hardware.timeout_seconds is how long",
                    ) from None
                _admit(Line(connection), found, ours)
    except BaseException as error:
        words = error if isinstance(error, VlmrunError) else LaunchError("node 0 has left before all nodes had come")
        Crew(node, found).tell({"failed": words.to_dict()})
        raise
    finally:
        ours.token.unlink(missing_ok=True)
    return found


def _admit(line: Line, found: dict[int, Line], ours: _Ours) -> None:
    """Takes a node in, or raises what is wrong with it. A peer that does not speak our protocol is sent away."""
    hello = line.receive(_SECONDS_TO_GREET)
    if hello is None or not isinstance(hello.get("node"), int) or not isinstance(hello.get("keys"), dict):
        line.close()
        return
    rank = hello["node"]
    place = f"node {rank} ({hello.get('host')})"
    problem = _difference(hello, place, found, ours)
    if problem is None:
        with contextlib.suppress(OSError):
            line.send({"token": str(ours.token), "text": ours.text})
        answer = line.receive(_SECONDS_TO_GREET)
        if answer is not None and answer.get("sees") is True:
            found[rank] = line
            return
        problem = Problem(f"{place} does not see {ours.token}, which node 0 has written", "output", SHARED)
    error = LaunchError([problem])
    with contextlib.suppress(OSError):
        line.send({"failed": error.to_dict()})
    line.close()
    raise error


def _difference(hello: dict[str, Any], place: str, found: dict[int, Line], ours: _Ours) -> Problem | None:
    """Why a node cannot take part, if it cannot."""
    if not 1 <= hello["node"] < ours.n_nodes:
        return Problem(
            f"{place} came, but hardware.nodes is {ours.n_nodes}", "NODE_RANK", "numbers below hardware.nodes"
        )
    if hello["node"] in found:
        return Problem(f"{place} came twice", "NODE_RANK", "another number on each node")
    if hello.get("version") != __version__:
        return Problem(
            f"{place} has vlmrun {hello.get('version')}, node 0 has {__version__}", "", "the same on all nodes"
        )
    differ = [name for name in {*ours.keys, *hello["keys"]} if ours.keys.get(name) != hello["keys"].get(name)]
    if differ:
        return Problem(
            f"{place} would run another {', '.join(sorted(map(str, differ)))} than node 0",
            "command line, conf/ or data files",
            "the same command, configuration and files on all nodes",
        )
    return None


@contextlib.contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    try:
        server = socket.create_server((address, port))
    except OSError as error:
        raise LaunchError(
            f"node 0 cannot listen on port {port}: {error.strerror or error}",
            "MASTER_PORT",
            "MASTER_PORT=another, on all nodes",
        ) from error
    with server:
        yield server
