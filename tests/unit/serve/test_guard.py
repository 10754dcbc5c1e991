"""What a client may do before its request is looked at, and which addresses images may come from."""

import asyncio
import socket

import httpcore
import pytest
import uvicorn

from vlmrun.serve import guard, image_parts
from vlmrun.serve.growing import Growing
from vlmrun.serve.limits import Limits, Refused


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_slow_head_is_not_waited_for(monkeypatch):
    """A byte now and then does not keep a connection: neither the first request's, nor a later one's."""
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.5)

    async def drip(before):
        server = uvicorn.Server(uvicorn.Config(hello, http=guard.Impatient, log_config=None, lifespan="off"))
        with socket.create_server(("127.0.0.1", 0)) as bound:
            serving = asyncio.create_task(server.serve([bound]))
            reader, writer = await asyncio.open_connection(*bound.getsockname()[:2])
            if before:
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert b"200 OK" in await reader.read(1000)
            began = asyncio.get_running_loop().time()
            closed = asyncio.create_task(reader.read())
            while not closed.done() and asyncio.get_running_loop().time() < began + 10:
                writer.write(b"G")
                await asyncio.sleep(0.1)
            took = asyncio.get_running_loop().time() - began
            writer.close()
            server.should_exit = True
            await serving
            return took

    for before in (False, True):
        assert asyncio.run(drip(before)) < 5


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("127.0.0.1", False), ("10.1.2.3", False), ("169.254.169.254", False), ("::1", False), ("fd00::1", False),
        ("::ffff:127.0.0.1", False), ("0.0.0.0", False), ("100.64.0.1", False), ("224.0.0.1", False),
        ("8.8.8.8", True), ("2001:4860:4860::8888", True),
    ],
)  # fmt: skip
def test_private_addresses(address, public):
    assert image_parts.is_public(address) == public


def fetch(url, **limits):
    return asyncio.run(image_parts.fetch(url, "here", Limits(**limits)))


def test_a_name_that_leads_home_is_not_followed(monkeypatch):
    """Also when only one of its addresses does; and a host must be allowed first."""

    async def both(self, host, port, **_):
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    with pytest.raises(Refused, match="not fetched from"):
        fetch("http://a.example/x.png", image_hosts=("b.example",))
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", both)
    with pytest.raises(Refused, match="not a public address"):
        fetch("http://a.example/x.png", image_hosts=("*",))


def test_an_allowed_image_is_fetched(monkeypatch):
    answer = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", png()]
    answer[0] %= len(answer[1])
    monkeypatch.setattr(image_parts, "_Public", lambda: httpcore.AsyncMockBackend(list(answer)))
    assert fetch("http://a.example/x.png", image_hosts=("a.example",)) == png()
    moved = [b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"]
    monkeypatch.setattr(image_parts, "_Public", lambda: httpcore.AsyncMockBackend(list(moved)))
    with pytest.raises(Refused, match="answers 302"):
        fetch("http://a.example/x.png", image_hosts=("*",))


def png():
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    return file.getvalue()


def test_nothing_is_given_out_that_changes_later():
    """Text comes piece by piece, never a part of a stop string or half a character, and joined it is the whole."""
    texts = ["He", "Hello", "Hello \ufffd", "Hello €", "Hello € E", "Hello € EN", "Hello € ENd", "Hello € ENd END more"]

    def read(ids):
        return texts[len(ids) - 1], False

    growing = Growing(read, stop=("END",))
    pieces = [growing.add(n) for n in range(len(texts))]
    assert pieces == ["H" + "e", "llo", " ", "€", " ", "", "ENd", " "]
    assert growing.ended
    assert growing.text == "Hello € ENd "
    assert growing.end() == ""
