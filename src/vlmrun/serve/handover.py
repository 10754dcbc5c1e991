"""Who computes the answers: our engine, or vLLM where it is installed, takes the model, and answers as we do.

vLLM serves a folder of `vlmrun convert ARTIFACT OUT --to hf_llava` and nothing else of ours: its registry has LLaVA and
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
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import LaunchError
from vlmrun.serve.messages import Ask, Plan, Sampling
from vlmrun.serve.pool import Pool

_TAKEN = ("llava", "llava_next")  # model types of Hugging Face's LLaVA
_START_SECONDS = 600.0
_QUESTIONS = ("What is in the image?", "Which color is it?", "Describe the image in one sentence.")
_TOKENS = 16


def obstacle(options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str]) -> str | None:
    """Why vLLM cannot be handed these models; None when it can, as far as that is known before it is started."""
    if shutil.which("vllm") is None:
        return "vLLM is not installed"
    if len(models) != 1:
        return "vLLM serves one model"
    config = models[0][1] / "config.json"
    kind = json.loads(config.read_text("utf-8")).get("model_type") if config.is_file() else None
    if kind not in _TAKEN:
        return "vLLM takes exported LLaVA folders only (vlmrun convert ARTIFACT OUT --to hf_llava)"
    unusual = [name for name, is_set in (("few bits", options.bits), ("--web", options.web)) if is_set]
    unusual += ["LLaVA's protocol"] if options.llava_protocol else []
    return f"{' and '.join(unusual)} need our engine" if unusual else None


def choose(
    options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str]
) -> tuple[bool, str]:
    """Whether to hand over, and the reason in a sentence.

    Raises:
        LaunchError: when vLLM was asked for by name and cannot be taken.
    """
    if options.engine == "own":
        return False, "engine: our own, as asked for"
    reason = obstacle(options, models, aliases)
    if reason is None:
        return True, "engine: vLLM, which is installed and takes this export; its answers are compared with ours first"
    if options.engine == "vllm":
        raise LaunchError(f"vLLM cannot serve this: {reason}", "--engine", "--engine own")
    return False, f"engine: our own ({reason})"


def command(options: argparse.Namespace, model: tuple[str, Path], aliases: Mapping[str, str], port: int) -> list[str]:
    """What starts vLLM; the key travels in its environment (VLLM_API_KEY)."""
    name, folder = model
    dtype = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[options.dtype]
    return [
        "vllm", "serve", str(folder.resolve()), "--host", options.host, "--port", str(port),
        "--served-model-name", name, *aliases, "--dtype", dtype, "--max-num-seqs", str(options.batch),
    ]  # fmt: skip


def serve(
    options: argparse.Namespace, model: tuple[str, Path], aliases: Mapping[str, str], key: str | None, plan: Plan
) -> int:
    """Starts vLLM, compares three greedy answers with ours, and leaves it serving.

    Returns:
        vLLM's exit code.

    Raises:
        LaunchError: when it does not start, or answers otherwise.
    """
    expected = asyncio.run(_ours(plan, model[0]))
    port = options.port or _free_port(options.host)
    environment = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **({"VLLM_API_KEY": key} if key else {}),
    }
    process = subprocess.Popen(command(options, model, aliases, port), env=environment)
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{host}:{port}"
    try:
        _wait(process, url)
        found = _theirs(url, model[0], key)
        if found != expected:
            what = f"vLLM answers {found!r}, our engine {expected!r}"
            raise LaunchError(what, "three greedy answers", "--engine own, or --dtype fp32 for both")
        os.write(2, f"serving at {url} by vLLM: three greedy answers are equal to ours\n".encode())
        return process.wait()
    finally:
        process.terminate()
        process.wait()


async def _ours(plan: Plan, name: str) -> list[str]:
    pool = Pool([plan])
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


def _theirs(url: str, name: str, key: str | None) -> list[str]:
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
            raise LaunchError(f"vLLM refuses a question: {answer.text[:300]}", url, "--engine own")
        texts.append(answer.json()["choices"][0]["message"]["content"].strip())
    return texts


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise LaunchError(f"vLLM ended with code {process.returncode}", "vllm serve", "look at its output above")
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise LaunchError("vLLM does not answer", url, "look at its output above")


def _png() -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return file.getvalue()


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        port: int = free.getsockname()[1]
        return port
