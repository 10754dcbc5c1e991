"""What nodes talk over, and what ends a job whose other half is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

_LONGEST_LINE = 1 << 20
# A lost rank ends its neighbors by itself, with better words than ours; only if it does not, they are killed.
SECONDS_TO_END = 60.0


class Line:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # A node without power sends nothing: the kernel asks after a minute of silence, and gives up after two more.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._file = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the other side is gone."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message; None when the other side has closed, or speaks another language."""
        try:
            self._socket.settimeout(timeout)
            text = self._file.readline(_LONGEST_LINE)
            message = json.loads(text) if text.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Ends the connection; a thread that waits for a message gets None."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


class Guard:
    """Ends the ranks of this node when it is known that those of another will not continue, and ours do not notice."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def watching(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """For the time in which a launcher runs that leads a process group of its own."""
        self._process = process
        try:
            yield
        finally:
            self._process = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def end_soon(self) -> None:
        """Leaves the ranks some time to end by themselves. Called from threads."""
        if self._timer is None and self._process is not None:
            self._timer = threading.Timer(SECONDS_TO_END, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
