"""Images of a request: data URLs, and addresses where the server allows them. Nothing is decoded here."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from vlmrun.data.images.opening import TOO_LARGE, opened
from vlmrun.errors import DataError
from vlmrun.serve.limits import Limits, bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
_SECONDS = 10.0


async def fetch(url: str, where: str, limits: Limits) -> bytes:
    """The file that an `image_url` names, known to be an image of allowed size by its header.

    Raises:
        Refused: when it is none, too large, or may not be fetched.
    """
    if url.startswith("data:"):
        data = _decoded(url, where)
    elif urlsplit(url).scheme in ("http", "https"):
        data = await _downloaded(url, where, limits)
    else:
        raise bad("an image is given by neither data nor address", where, "data:image/png;base64,...")
    check(data, where, limits)
    return data


def from_base64(text: str, where: str, limits: Limits) -> bytes:
    """As `fetch` for bare base64."""
    data = _base64(text, where)
    check(data, where, limits)
    return data


def check(data: bytes, where: str, limits: Limits) -> None:
    """Reads the header only: a few bytes may say that they are gigabytes of pixels.

    Raises:
        Refused: when it is no image of an allowed format, or too large.
    """
    most = limits.megapixels * 1_000_000
    try:
        with opened(BytesIO(data), "the image", fix="", max_pixels=most, formats=FORMATS) as image:
            width, height = image.size
    except DataError as error:
        what = error.problems[0].what
        if TOO_LARGE in what:
            raise _too_large(what, where, limits) from error
        raise bad("the image cannot be read", where, f"send {', '.join(FORMATS)}", code="invalid_image") from error
    if max(width, height) > 100 * min(width, height):
        raise bad(f"the image has {width} x {height} pixels", where, "crop it to less than 100 : 1")


def _too_large(what: str, where: str, limits: Limits) -> Exception:
    return bad(what, where, f"send at most {limits.megapixels} million pixels", 413, "image_too_large")


def _decoded(url: str, where: str) -> bytes:
    head = _DATA_URL.match(url[:200])
    if head is None or head["base64"] is None:
        raise bad("the data URL is not base64", where, "data:image/png;base64,...")
    return _base64(url[head.end() :], where)


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad("the image is not valid base64", where, "encode the file's bytes with base64") from error


async def _downloaded(url: str, where: str, limits: Limits) -> bytes:
    import httpcore

    host = urlsplit(url).hostname or ""
    if "*" not in limits.image_hosts and host not in limits.image_hosts:
        raise bad(
            f"images are not fetched from {host!r}", where, "send a data URL, or start the server with --image-hosts"
        )
    try:
        async with asyncio.timeout(_SECONDS), httpcore.AsyncConnectionPool(network_backend=_public()) as pool:
            return await _read(pool, url, where, limits)
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, TimeoutError, OSError) as error:
        raise bad(f"the image cannot be fetched: {error}", where, "send a data URL") from error


async def _read(pool: Any, url: str, where: str, limits: Limits) -> bytes:
    data = bytearray()
    async with pool.stream("GET", url, headers={"Accept": "image/*"}) as response:
        if response.status != 200:
            raise bad(f"the image's address answers {response.status}", where, "give the address of the file itself")
        async for part in response.aiter_stream():
            data += part
            if len(data) > limits.body_mb * 2**20:
                raise bad(
                    "the image's file is too large", where, f"at most {limits.body_mb} MiB", 413, "image_too_large"
                )
    return bytes(data)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: no loopback, no private network, no cloud's metadata."""
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not (mapped or ip).is_multicast


def _public() -> Any:
    """Connects to public addresses only; the address that was looked at is the one connected to."""
    import httpcore  # of the extra: a chat about files does without

    class Public(httpcore.AsyncNetworkBackend):
        inner = httpcore.AnyIOBackend()

        async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(entry[4][0]) for entry in found]
            if not all(is_public(address) for address in addresses):
                raise httpcore.ConnectError(f"{host} is not a public address")
            return await self.inner.connect_tcp(addresses[0], port, *args, **kwargs)

        async def sleep(self, seconds: float) -> None:
            await self.inner.sleep(seconds)

    return Public()
