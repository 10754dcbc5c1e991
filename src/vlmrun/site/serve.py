"""The output root's site on this machine alone: loopback, reading only, nothing outside of the site's folder."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vlmrun.errors import LaunchError
from vlmrun.site import links

_HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answers requests that name this machine only, so that a web page elsewhere cannot read runs by a name of its
        own that leads here.
        """
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (_HOST, "localhost"):
            self.send_error(403, "this server answers 127.0.0.1 and localhost")
        elif not self._is_inside():
            self.send_error(404)
        else:
            super().do_GET()

    do_HEAD = do_GET

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal shows the run."""

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def _is_inside(self) -> bool:
        """Whether the file, links followed, is the site's; or one of a run's own files that pages link to."""
        path, root = Path(self.translate_path(self.path)).resolve(), Path(self.directory).resolve()
        parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
        return bool(parts) and parts[0] in (links.FOLDER, "runs", "stages", "sweeps") and "weights" not in parts


@contextlib.contextmanager
def serving(root: Path, port: int) -> Iterator[str]:
    """Serves an output root while the context is open; yields the address of the first page.

    Args:
        port: 0: any that is free.

    Raises:
        LaunchError: when the port is in use.
    """
    try:
        server = ThreadingHTTPServer((_HOST, port), functools.partial(_Handler, directory=str(root.resolve())))
    except (OSError, OverflowError) as error:
        raise LaunchError(f"port {port} cannot be used: {error}", "--port", "--port 0 takes a free one") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="site server")
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_address[1]}/{links.FOLDER}/{links.HOME}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
