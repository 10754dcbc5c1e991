"""A real `vlmrun serve` for tests, and everything that its processes connect to, written down."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Loaded by every Python process of the server, workers included: notes each socket that is connected or bound.
_WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        with open(os.environ["VLMRUN_TEST_SOCKETS"], "a") as file:
            file.write(f"{event} {arguments[1]!r}\\n")
    elif event == "socket.getaddrinfo":
        with open(os.environ["VLMRUN_TEST_SOCKETS"], "a") as file:
            file.write(f"{event} {arguments[0]!r}\\n")
sys.addaudithook(note)
"""
_NEAR = re.compile(
    r"socket\.(connect|bind|sendto) (\('(127\.0\.0\.1|::1|0\.0\.0\.0)', \d+(, \d+, \d+)?\)|'[^']*'|b'[^']*')"
    r"|socket\.getaddrinfo ('127\.0\.0\.1'|'localhost'|'::1'|b'127\.0\.0\.1'|b'localhost')"
)


@dataclass
class Server:
    """A server under test."""

    url: str
    process: subprocess.Popen[str]
    sockets: Path
    said: list[str]

    def workers(self) -> list[int]:
        """Process ids of its workers: children of its fork server."""
        own = _children(self.process.pid)
        return sorted(pid for child in own for pid in _children(child))

    def far(self) -> list[str]:
        """Sockets that were opened to somewhere else than this machine."""
        if not self.sockets.exists():
            return []
        return [line for line in self.sockets.read_text().splitlines() if not _NEAR.fullmatch(line)]


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Starts `vlmrun serve ARGUMENTS --port 0` and waits until it serves; stops it at the end."""
    (folder / "sitecustomize.py").write_text(_WATCH)
    sockets = folder / "sockets.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmrun.cli", "serve", *arguments, "--port", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "VLMRUN_TEST_SOCKETS": str(sockets), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving at "):
                ready.set()
        process.stderr.close()
        ready.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        assert ready.wait(120), "it does not start"
        found = next((line for line in said if line.startswith("serving at ")), None)
        assert found is not None, "".join(said)
        yield Server(found.split()[2], process, sockets, said)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        listener.join(10)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found
