"""A judge behind an OpenAI-compatible endpoint: cached by content, retried within bounds, replayed offline."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.errors import ConfigError, DataError, LaunchError
from vlmrun.eval.judge_config import Judge

_RETRIED = frozenset((408, 409, 425, 429))  # and everything from 500 on
_HOPELESS = frozenset((401, 403, 404))  # of one question as of all
_LONGEST_WAIT = 60.0
_MOST_BYTES = 4 << 20  # of a reply
_BYTES_A_TOKEN = 4  # about, for an estimate
_MESSAGE_TOKENS = 8

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Verdict:
    """What came of one question.

    Args:
        text: the judge's words; None: it gave none, for this reason.
    """

    text: str | None
    reason: str = ""
    cached: bool = False


def request(judge: Judge, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The body of a request."""
    return {
        "model": judge.model,
        "messages": list(messages),
        "temperature": judge.temperature,
        "max_tokens": judge.max_tokens,
    }


def estimate(judge: Judge, bodies: Sequence[Mapping[str, Any]]) -> tuple[int, float | None]:
    """About how many tokens are sent, and the most that they and their answers cost; None without prices."""
    sent = sum(
        len(str(message["content"]).encode("utf-8", "replace")) // _BYTES_A_TOKEN + _MESSAGE_TOKENS
        for body in bodies
        for message in body["messages"]
    )
    if judge.price_in is None or judge.price_out is None:
        return sent, None
    return sent, (sent * judge.price_in + len(bodies) * judge.max_tokens * judge.price_out) / 1e6


@dataclass(frozen=True)
class Cache:
    """Replies by the content of their requests, one small file each: a judge that dies midway loses nothing."""

    folder: Path

    def key(self, judge: Judge, body: Mapping[str, Any]) -> Path:
        """Where a request's reply is; the address counts, the key does not."""
        text = json.dumps([judge.url, body], sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{digest[:32]}.json"

    def get(self, path: Path) -> str | None:
        """A reply of before."""
        try:
            text = json.loads(path.read_text("utf-8"))["content"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def put(self, path: Path, body: Mapping[str, Any], text: str) -> None:
        """Keeps a reply beside its request."""
        kept = json.dumps({"request": body, "content": text}, indent=1)
        artifact.write_text(path, kept + "\n")


def ask(
    judge: Judge, bodies: Sequence[Mapping[str, Any]], cache: Cache, report: Report, *, offline: bool = False
) -> list[Verdict]:
    """The verdict on every request, in order: from the cache, else over the network.

    A request that is not answered within its attempts is left without a verdict; one that is refused for good (a wrong
    key, an unknown model) ends them all.

    Args:
        offline: replay the cache alone.

    Raises:
        ConfigError: when the key is not in the environment.
        LaunchError: when the server refuses for good.
    """
    known = [cache.get(cache.key(judge, body)) for body in bodies]
    found = {place: Verdict(text, cached=True) for place, text in enumerate(known) if text is not None}
    todo = [place for place in range(len(bodies)) if place not in found]
    if offline:
        return [found.get(place, Verdict(None, "not in the cache")) for place in range(len(bodies))]
    key = _key(judge) if todo else None
    done = len(found)
    with ThreadPoolExecutor(judge.concurrency) as pool:
        futures = {place: pool.submit(_one, judge, bodies[place], key, cache) for place in todo}
        try:
            for place, future in futures.items():
                found[place] = future.result()
                done += 1
                report(done, len(bodies))
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
    return [found[place] for place in range(len(bodies))]


def _one(judge: Judge, body: Mapping[str, Any], key: str | None, cache: Cache) -> Verdict:
    """Asks, and keeps the reply at once."""
    verdict = _attempts(judge, body, key)
    if verdict.text is not None:
        cache.put(cache.key(judge, body), body, verdict.text)
    return verdict


def _key(judge: Judge) -> str | None:
    if judge.key_env is None:
        return None
    key = os.environ.get(judge.key_env)
    if not key:
        raise ConfigError("the judge's key is not set", judge.key_env, f"export {judge.key_env}=...; or --offline")
    return key


def _attempts(judge: Judge, body: Mapping[str, Any], key: str | None) -> Verdict:
    wait, reason = judge.wait_seconds, ""
    for attempt in range(judge.attempts):
        if attempt:
            time.sleep(min(wait, _LONGEST_WAIT))
            wait *= 2
        try:
            return Verdict(_content(_post(judge, body, key)))
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code}"
            if error.code in _HOPELESS:
                fix = f"check {judge.key_env or 'key_env'} and model={judge.model}"
                raise LaunchError(f"the judge refuses: {reason} {error.reason}", judge.url, fix) from error
            if error.code < 500 and error.code not in _RETRIED:
                return Verdict(None, reason)
            wait = max(wait, _retry_after(error))
        except DataError as error:
            reason = error.problems[0].what
        except (OSError, http.client.HTTPException) as error:  # no connection, a reset, a time-out, half a head
            reason = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
    return Verdict(None, f"{reason}, {judge.attempts} times")


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = str(error.headers.get("Retry-After", ""))
    return float(text) if text.isdecimal() else 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to the address that was named, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(judge: Judge, body: Mapping[str, Any], key: str | None) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    url = judge.url.rstrip("/") + "/chat/completions"
    sent = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect())
    with opener.open(sent, timeout=judge.timeout_seconds) as reply:
        content: bytes = reply.read(_MOST_BYTES + 1)
        length = str(reply.headers.get("Content-Length", ""))
    if length.isdecimal() and len(content) < min(int(length), _MOST_BYTES):
        raise DataError("the reply breaks off", url)
    if len(content) > _MOST_BYTES:
        raise DataError("the reply is longer than 4 MB", url)
    return content


def _content(reply: bytes) -> str:
    """The text of a chat completion."""
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DataError("the reply is no chat completion") from error
    if not isinstance(text, str):
        raise DataError("the reply holds no text")
    return text
