"""Who computes the answers: our engine, or vLLM or SGLang where one is installed and answers as we do.

Both serve a folder of `vlmrun convert ARTIFACT OUT --to hf_llava` and nothing else of ours: they have LLaVA and
LLaVA-NeXT in Hugging Face's form, but no Bunny, no dense connector, no adapters of ours. Free of torch.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import LaunchError
from vlmrun.serve.messages import Ask, Plan, Sampling
from vlmrun.serve.pool import Pool, Work

_TAKEN = ("llava", "llava_next")  # model types of Hugging Face's LLaVA
_START_SECONDS = 600.0
_DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_QUESTIONS = ("What is in the image?", "Which color is it?", "Describe the image in one sentence.")
_TOKENS = 16


@dataclass(frozen=True)
class Other:
    """An engine that is not ours.

    Args:
        program: its command.
        limit: how many it decodes together, as its option.
        names: whether a model may have several.
    """

    name: str
    program: str
    folder: tuple[str, ...]
    limit: str
    names: bool

    def obstacle(
        self, options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str]
    ) -> str | None:
        """Why it cannot be handed these models; None when it can, as far as that is known before it is started."""
        if shutil.which(self.program) is None:
            return f"{self.name} is not installed"
        if len(models) != 1:
            return f"{self.name} serves one model"
        if aliases and not self.names:
            return f"{self.name} serves a model under one name"
        config = models[0][1] / "config.json"
        kind = json.loads(config.read_text("utf-8")).get("model_type") if config.is_file() else None
        if kind not in _TAKEN:
            return f"{self.name} takes exported LLaVA folders only (vlmrun convert ARTIFACT OUT --to hf_llava)"
        unusual = [name for name, is_set in (("few bits", options.bits), ("--web", options.web)) if is_set]
        unusual += ["LLaVA's protocol"] if options.llava_protocol else []
        return f"{' and '.join(unusual)} need our engine" if unusual else None

    def command(
        self, options: argparse.Namespace, model: tuple[str, Path], aliases: Mapping[str, str], port: int
    ) -> list[str]:
        """What starts it, without the key: others see a process's arguments."""
        name, folder = model
        return [
            self.program, "serve", *self.folder, str(folder.resolve()), "--host", options.host, "--port", str(port),
            "--served-model-name", name, *aliases, "--dtype", _DTYPES[options.dtype], self.limit, str(options.batch),
        ]  # fmt: skip


OTHERS = {
    "vllm": Other("vLLM", "vllm", (), "--max-num-seqs", names=True),
    "sglang": Other("SGLang", "sglang", ("--model-path",), "--max-running-requests", names=False),
}


def choose(
    options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str]
) -> tuple[Other | None, str]:
    """Which engine to hand over to, None: ours answers; and the reason in a sentence.

    Raises:
        LaunchError: when an engine was asked for by name and cannot be taken.
    """
    if options.engine == "own":
        return None, "engine: our own, as asked for"
    asked = OTHERS if options.engine == "auto" else {options.engine: OTHERS[options.engine]}
    reasons = []
    for other in asked.values():
        reason = other.obstacle(options, models, aliases)
        if reason is None:
            sure = "which is installed and takes this export; its answers are compared with ours first"
            return other, f"engine: {other.name}, {sure}"
        reasons.append(reason)
    if options.engine != "auto":
        raise LaunchError(f"{OTHERS[options.engine].name} cannot serve this: {reasons[0]}", "--engine", "--engine own")
    return None, f"engine: our own ({'; '.join(dict.fromkeys(reasons))})"


def serve(  # noqa: PLR0913 - what a server is given
    other: Other,
    options: argparse.Namespace,
    model: tuple[str, Path],
    aliases: Mapping[str, str],
    key: str | None,
    plan: Plan,
    work: Work,
) -> int:
    """Starts another engine, compares three greedy answers with ours, and leaves it serving.

    Returns:
        Its exit code.

    Raises:
        LaunchError: when it does not start, or answers otherwise.
    """
    expected = asyncio.run(_ours(plan, work, model[0]))
    port = options.port or _free_port(options.host)
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{host}:{port}"
    with tempfile.TemporaryDirectory() as private:
        command = other.command(options, model, aliases, port)
        if key and other.program == "vllm":
            environment["VLLM_API_KEY"] = key
        elif key:
            config = Path(private) / "config.yaml"
            config.write_text(json.dumps({"api-key": key}), "utf-8")  # YAML, too
            command += ["--config", str(config)]
        process = subprocess.Popen(command, env=environment)
        try:
            _wait(other, process, url)
            found = _theirs(other, url, model[0], key)
            if found != expected:
                what = f"{other.name} answers {found!r}, our engine {expected!r}"
                raise LaunchError(what, "three greedy answers", "--engine own, or --dtype fp32 for both")
            os.write(2, f"serving at {url} by {other.name}: three greedy answers are equal to ours\n".encode())
            return process.wait()
        finally:
            process.terminate()
            process.wait()


async def _ours(plan: Plan, work: Work, name: str) -> list[str]:
    pool = Pool([plan], work)
    try:
        await pool.start()
        turns = [(Turn("user", f"{IMAGE_TAG}\n{text}"),) for text in _QUESTIONS]
        asks = [Ask(0, name, turn, "", (_png(),), Sampling(), _TOKENS, _TOKENS) for turn in turns]
        texts = ["" for _ in asks]
        async for place, news in pool.answers(asks):
            texts[place] += news.text
        return texts
    finally:
        pool.close()


def _theirs(other: Other, url: str, name: str, key: str | None) -> list[str]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    image = f"data:image/png;base64,{base64.b64encode(_png()).decode()}"
    texts = []
    for text in _QUESTIONS:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": text},
        ]
        body = {
            "model": name,
            "messages": [{"role": "user", "content": parts}],
            "temperature": 0,
            "max_tokens": _TOKENS,
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120, trust_env=False)
        if answer.status_code != 200:
            raise LaunchError(f"{other.name} refuses a question: {answer.text[:300]}", url, "--engine own")
        texts.append(answer.json()["choices"][0]["message"]["content"].strip())
    return texts


def _wait(other: Other, process: subprocess.Popen[bytes], url: str) -> None:
    output = "look at its output above"
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise LaunchError(f"{other.name} ended with code {process.returncode}", f"{other.program} serve", output)
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise LaunchError(f"{other.name} does not answer", url, output)


def _png() -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return file.getvalue()


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        port: int = free.getsockname()[1]
        return port
