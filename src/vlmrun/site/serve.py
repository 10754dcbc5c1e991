"""The output root's site for one person on this machine: loopback, reading only, nothing but what pages show.

Other people on the machine can reach its loopback too: only who has the address that was printed gets an answer. The
random token in it is kept as a cookie, so that pages lead on to each other.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vlmrun.errors import LaunchError
from vlmrun.site import links

_HOST = "127.0.0.1"
_TOKEN = "token"
_LARGE = {"weights", "checkpoints"}  # of stages; no page leads there


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, token: str, **rest: Any) -> None:
        self._token = token
        self._is_new = False
        super().__init__(*args, **rest)

    def do_GET(self) -> None:
        if self._may():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._may():
            super().do_HEAD()

    def end_headers(self) -> None:
        if self._is_new:
            self.send_header("Set-Cookie", f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict")
        self.send_header(
            "Cache-Control", "no-store"
        )  # a page can be written twice in a second, which dates do not tell
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal shows the run."""

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def _may(self) -> bool:
        """Whether a request is answered; if not, it is refused here.

        It has to name this machine, so that a web page elsewhere cannot read runs by a name of its own that leads here.
        """
        host = (self.headers.get("Host") or "").partition(":")[0]
        if host not in (_HOST, "localhost"):
            self.send_error(403, "this server answers 127.0.0.1 and localhost")
        elif not self._is_known():
            self.send_error(403, "open the address that vlmrun watch printed")
        elif not self._is_inside():
            self.send_error(404)
        else:
            return True
        return False

    @property
    def _cookie(self) -> str:
        """Cookies do not know ports: one name for each server."""
        return f"vlmrun-{self.connection.getsockname()[1]}"

    def _is_known(self) -> bool:
        pairs = (part.strip().partition("=") for part in (self.headers.get("Cookie") or "").split(";"))
        if any(name == self._cookie and self._is_token(value) for name, _, value in pairs):
            return True
        try:
            given = parse_qs(urlsplit(self.path).query).get(_TOKEN, [])
        except ValueError:
            return False
        self._is_new = any(map(self._is_token, given))
        return self._is_new

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", errors="replace"), self._token.encode())

    def _is_inside(self) -> bool:
        """Whether the file, links followed, is the site's; or one of a run's own files that pages link to."""
        try:
            path, root = Path(self.translate_path(self.path)).resolve(), Path(self.directory).resolve()
        except (OSError, RuntimeError, ValueError):  # no name of a file, or a circle of links
            return False
        top, *rest = path.relative_to(root).parts if path != root and path.is_relative_to(root) else ("",)
        return top in (links.FOLDER, "runs", "sweeps") or (top == "stages" and not _LARGE.intersection(rest))


@contextlib.contextmanager
def serving(root: Path, port: int) -> Iterator[Callable[[str], str]]:
    """Serves an output root while the context is open.

    Args:
        port: 0: any that is free.

    Yields:
        A page's place in the site -> the address to open it with.

    Raises:
        LaunchError: when the port is in use.
    """
    token = secrets.token_urlsafe(24)
    handler = functools.partial(_Handler, directory=str(root.resolve()), token=token)
    try:
        server = ThreadingHTTPServer((_HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise LaunchError(f"port {port} cannot be used: {error}", "--port", "--port 0 takes a free one") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="site server")
    thread.start()
    base = f"http://{_HOST}:{server.server_address[1]}/{links.FOLDER}/"
    try:
        yield lambda page: f"{base}{links.href('', page)}?{_TOKEN}={token}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
