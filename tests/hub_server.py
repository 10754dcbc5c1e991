"""A hub on this machine: what huggingface_hub asks of one, over HTTP, with breaks where a test wants them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by `models/OWNER/NAME` or `datasets/OWNER/NAME`.

    Args:
        gated: repositories that answer 403.
        breaks: file -> bytes after which the connection is closed, once.
        without_digest: files that have no ETag.
        damages: files that come with another first byte.
        asked: method, path and Range of every request.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    breaks: dict[str, int] = field(default_factory=dict)
    without_digest: set[str] = field(default_factory=set)
    damages: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub, at `hub.address`, until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Not on the test's screen."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if path.count("/") < 4:
            return self._refuse(404, "NotFound")
        if path.startswith("/api/"):
            kind, owner, name, *_ = path.removeprefix("/api/").split("/")
            return self._info(f"{kind}/{owner}/{name}", f"{owner}/{name}")
        words = path.strip("/").split("/")
        kind = words.pop(0) if words[0] == "datasets" else "models"
        repository, file = f"{kind}/{words[0]}/{words[1]}", "/".join(words[4:])
        if repository in hub.gated:
            return self._refuse(403, "GatedRepo")
        content = hub.repositories.get(repository, {}).get(file)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        return self._file(file, content, with_body=with_body)

    def _info(self, repository: str, id_: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        gated = "manual" if repository in self.hub.gated else False
        card = {"license": "apache-2.0"}
        return self._send(
            200, json.dumps({"id": id_, "sha": COMMIT, "siblings": siblings, "gated": gated, "cardData": card}).encode()
        )

    def _file(self, file: str, content: bytes, *, with_body: bool) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        part = content[start:] if file not in self.hub.damages else b"?" + content[start + 1 :]
        self.send_response(206 if start else 200)
        if file not in self.hub.without_digest:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            end = self.hub.breaks.pop(file, None)
            self.wfile.write(part if end is None else part[:end])
            if end is not None:
                self.wfile.flush()
                self.connection.shutdown(2)
                self.close_connection = True

    def _refuse(self, code: int, name: str) -> None:
        self._send(code, b"{}", **{"X-Error-Code": name, "X-Error-Message": name})

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
