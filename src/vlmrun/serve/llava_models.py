"""Models of LLaVA's workers under OpenAI's routes, so that our page and OpenAI's clients ask them as they ask ours.

A worker takes a prompt as it is written; its template is guessed from the model's name, as LLaVA's page does.

Source: haotian-liu/LLaVA@c121f043 llava/serve/gradio_web_server.py get_template_name, http_bot
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import httpx

from vlmrun.data import templates
from vlmrun.errors import LaunchError
from vlmrun.serve.limits import bad
from vlmrun.serve.llava_registry import Registry
from vlmrun.serve.messages import Ask, News, Sampling, Usage

_UNKNOWN = Usage(0, 0, 0, 0.0, 0.0)  # workers do not count tokens
_CONNECT_SECONDS = 5.0
_ONE_TOKEN = 4096  # bytes of a chunk at most, for every token that was asked for; a chunk has the whole text


class Models:
    """What registered workers have.

    Args:
        seconds: that an answer may take.
    """

    def __init__(self, registry: Registry, seconds: float) -> None:
        self.registry = registry
        self.seconds = seconds

    def names(self) -> list[str]:
        """Of all models."""
        return self.registry.models()

    def facts(self, name: str) -> dict[str, Any]:
        """What a client may want to know of one: little is known."""
        return {"context": None, "template": template_of(name).name, "image_background": "#ffffff"}

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, News], None]:
        """News of one question; as `Pool.answers`.

        Raises:
            Refused: for what a worker would not heed.
            LaunchError: when no worker has the model, or it fails.
        """
        (ask,) = _checked(asks)
        template = template_of(ask.model)
        prompt = ask.prompt if ask.turns is None else template.prompt(ask.turns, images=bool(ask.images))
        body = {
            "model": ask.model,
            "prompt": prompt,
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "max_new_tokens": ask.most_tokens if ask.max_tokens is None else ask.max_tokens,
            "stop": template.stop[0] if template.stop else None,
            "images": [base64.b64encode(image).decode() for image in ask.images],
        }
        told = ""
        async for whole in self._chunks(ask.model, body):
            text = whole.removeprefix(prompt)
            text = text if ask.turns is None else text.strip()
            if len(text) > len(told) and text.startswith(told):
                yield 0, News(0, text[len(told) :], (), None, _UNKNOWN)
                told = text
        yield 0, News(0, "", (), "stop", _UNKNOWN)

    async def _chunks(self, model: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """The whole text so far, again and again."""
        address = self.registry.choose(model)
        if not address:
            raise LaunchError("no worker has the model any more", model, "start its worker, or ask another model")
        timeout = httpx.Timeout(self.seconds, connect=_CONNECT_SECONDS)
        most = (body["max_new_tokens"] + len(body["prompt"])) * _ONE_TOKEN
        rest = b""
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
                client.stream("POST", f"{address}/worker_generate_stream", json=body) as answer,
            ):
                async for part in answer.aiter_bytes():
                    *chunks, rest = (rest + part).split(b"\0")
                    for chunk in chunks:
                        yield _text(chunk, model)
                    if len(rest) > most:
                        raise ValueError("a chunk has no end")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise LaunchError(f"its worker fails: {error}", model, "look at that worker's output") from error


def _text(chunk: bytes, model: str) -> str:
    found = json.loads(chunk)
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise ValueError("its chunk has no text")
    if found.get("error_code", 0) != 0:
        raise LaunchError(f"its worker says {found['text'][:300]!r}", model, "look at that worker's output")
    return str(found["text"])


def _checked(asks: Sequence[Ask]) -> Sequence[Ask]:
    """Questions, after what LLaVA's workers have no words for was refused."""
    sampling, neutral = asks[0].sampling, Sampling()
    unheard = [
        name
        for name, value in vars(replace(sampling, temperature=0.0, top_p=1.0)).items()
        if value != getattr(neutral, name)
    ]
    unheard += ["stop"] if asks[0].stop else []
    unheard += ["n"] if len(asks) > 1 else []
    if unheard:
        raise bad("LLaVA's workers do not take this", ", ".join(unheard), "leave it out, or ask one of our own models")
    return asks


def template_of(model: str) -> templates.Template:
    """LLaVA's rule; where it names a template that does not exist upstream, the nearest that does."""
    name = model.lower()
    if "llava" not in name:
        other = "mpt" if "mpt" in model else "llama_2" if "llama-2" in model else "vicuna_v1"
        return templates.get(other)
    marked = "mmtag" in name or ("plain" in name and "finetune" not in name)
    if "llama-2" in name:
        found = "llava_llama_2"
    elif "mistral" in name or "mixtral" in name:
        found = "chatml_direct" if "hermes" in name or "orca" in name else "mistral_instruct"
    elif "llava-v1.6-34b" in name:
        found = "chatml_direct"
    elif "v1" in name:
        found = "v1_mmtag" if marked else "llava_v1"
    elif "mpt" in name:
        found = "mpt"
    else:
        found = "v0_mmtag" if marked else "llava_v0"
    return templates.get(found)
