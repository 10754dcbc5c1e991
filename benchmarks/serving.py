"""What serving several clients at once brings: `python -m benchmarks.serving`.

A real `vlmrun serve` with random weights, asked over HTTP by 1, 4 and 8 clients at a time; beside it the same questions
to plain transformers (`generate`), one at a time, in a process of its own. Every question shows an image of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.measure import QUIET, Table, parser, show, vlmrun

SIZES: dict[str, dict[str, Any]] = {
    # The smoke recipe's shape; random numbers, because trained ones end an answer after a word.
    "micro": {
        "tokenizer": "builtin:micro-llm",
        "config": {
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        },
    },
    # SmolLM2-135M's shape, random numbers.
    "135m": {
        "tokenizer": "builtin:micro-llm",
        "config": {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    },
}  # fmt: skip
CLIENTS = (1, 4, 8)


@dataclass(frozen=True)
class Measured:
    """Tokens per second over all clients, the same per second of CPU that the server used, seconds to first tokens."""

    tokens: float
    per_cpu: float
    first: float


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=SIZES, action="append", help="measure this one only")
    options.add_argument("--tokens", type=int, default=48, help="of each answer")
    options.add_argument("--rounds", type=int, default=3, help="questions of each client")
    options.add_argument("--plain", metavar="FOLDER", help=argparse_hidden())
    chosen = options.parse_args()
    os.environ.update(QUIET)
    if chosen.plain:
        print(plain(Path(chosen.plain), chosen.tokens, chosen.rounds))
        return
    tokens, rounds = (8, 1) if chosen.quick else (chosen.tokens, chosen.rounds)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen.model or (["micro"] if chosen.quick else list(SIZES)):
            folder = make(name, Path(scratch) / name)
            rows += measure(name, folder, tokens, rounds)
    header = ["model", "how", "clients", "tokens/s", "times one", "per CPU s", "times one by CPU", "first token (ms)"]
    notes = [f"answers of {tokens} tokens, {rounds} for each client; the first token of the median question"]
    show(Table("Serving", header, rows, notes), chosen.json)


def argparse_hidden() -> str:
    """The help of an option that is ours alone."""
    import argparse

    return argparse.SUPPRESS


def make(name: str, folder: Path) -> Path:
    """A weights folder of a size."""
    code = (
        "import sys, torch; from pathlib import Path; from benchmarks import serving; "
        f"serving.write({name!r}, Path({str(folder)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | QUIET, capture_output=True)
    return folder


def write(name: str, folder: Path) -> None:
    """What `make` runs: loads torch."""
    import torch

    from vlmrun.config.schema import ModelConfig
    from vlmrun.data.templates import TEMPLATES
    from vlmrun.model.parts import assemble
    from vlmrun.weights import native

    parts = {
        "llm": {"_target_": "vlmrun.model.llm.load", **SIZES[name]},
        "tower": {"_target_": "vlmrun.model.towers.siglip.Siglip", "path": "builtin:micro-tower", "layers": [-2]},
        "connector": {"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": 2},
    }
    fields = {"template": "micro", "max_length": 1024, "image_markers": None, "new_tokens": [], "tiles": None}
    model = ModelConfig.model_validate(parts | fields)
    loaded = assemble(model, dtype=torch.float32, attention="sdpa", seed=0)
    native.save(folder, loaded, template=TEMPLATES["micro"].to_dict(), image_aspect="pad", tensors={})


def measure(name: str, folder: Path, tokens: int, rounds: int) -> list[list[Any]]:
    """Rows of one model."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving",
        f"--plain={folder}",
        f"--tokens={tokens}",
        f"--rounds={rounds}",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    alone = float(done.stdout.split()[-1])
    rows: list[list[Any]] = [[name, "transformers, one at a time", 1, round(alone, 1), "", "", "", ""]]
    with served(folder) as server:
        asyncio.run(ask_all(server, 1, tokens, 1, start=10_000))  # what is computed once for all
        found = {n: asyncio.run(ask_all(server, n, tokens, rounds, start=n * 1000)) for n in CLIENTS}
        # Two take turns: each asks while the other is being answered.
        apart = tokens / found[1].tokens / 2
        pair = asyncio.run(ask_all(server, 2, tokens, rounds, start=90_000, apart=apart))
    one = found[1]
    for n, each in sorted({**found, 2: pair}.items()):
        speeds = [round(each.tokens, 1), f"{each.tokens / one.tokens:.2f}"]
        speeds += [round(each.per_cpu, 1), f"{each.per_cpu / one.per_cpu:.2f}"]
        rows.append([name, "vlmrun serve", n, *speeds, round(each.first * 1000, 1)])
    return rows


def plain(folder: Path, tokens: int, rounds: int) -> float:
    """Tokens per second of `generate`, one question at a time."""
    import torch

    from vlmrun.data.sample import Turn
    from vlmrun.formats.load import describe
    from vlmrun.serve.opening import open_model
    from vlmrun.serve.served import Served

    torch.set_num_threads(1)
    model = Served("plain", open_model(folder), describe(folder)["image_aspect"])
    seconds = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        prompt = model.conversation(
            [Turn("user", f"<image>\nWhat is number {number}?")], [model.picture(image(number))]
        )
        ids = torch.tensor([prompt.ids])
        pixels = torch.from_numpy(prompt.pictures[0].tiles)
        model.vlm.generate(ids, torch.ones_like(ids, dtype=torch.bool), pixels, max_new_tokens=tokens, eos_ids=[-1])
        seconds.append(time.perf_counter() - began)
    return tokens / statistics.median(seconds[1:])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server of this model: its address and its process."""
    command = [*vlmrun(), "serve", f"m={folder}", "--port=0", "--batch=8"]
    process = subprocess.Popen(command, env=os.environ | QUIET, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("serving at "):
                yield line.split()[2], psutil.Process(process.pid)
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def cpu_seconds(server: psutil.Process) -> float:
    """What the server and its workers have used so far."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


async def ask_all(
    server: tuple[str, psutil.Process], clients: int, tokens: int, rounds: int, *, start: int, apart: float = 0
) -> Measured:
    """Every client asks one question after the other; clients begin so many seconds apart."""
    url, process = server
    firsts: list[float] = []
    got = 0
    headers = {"Content-Type": "application/json"}
    where = f"{url}/v1/chat/completions"

    bodies = [[question(start + n * rounds + turn, tokens) for turn in range(rounds)] for n in range(clients)]

    async def client(number: int) -> None:
        nonlocal got
        await asyncio.sleep(number * apart)
        async with httpx.AsyncClient(timeout=600, trust_env=False) as session:
            for body in bodies[number]:
                began, n = time.perf_counter(), 0
                async with session.stream("POST", where, content=body, headers=headers) as answer:
                    async for line in answer.aiter_lines():
                        if '"logprobs": {' in line:
                            n += 1
                            if n == 1:
                                firsts.append(time.perf_counter() - began)
                got += n

    began, used = time.perf_counter(), cpu_seconds(process)
    await asyncio.gather(*(client(number) for number in range(clients)))
    used = cpu_seconds(process) - used
    return Measured(got / (time.perf_counter() - began), got / used, statistics.median(firsts))


def question(number: int, tokens: int) -> str:
    """A question about an image that was not asked about before; log-probabilities let its tokens be counted."""
    file = BytesIO()
    image(number).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"What is number {number}?"}]
    body = {
        "model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": tokens, "stream": True,
        "logprobs": True, "temperature": 1.0, "seed": number,
    }  # fmt: skip
    return json.dumps(body)


def image(number: int) -> Any:
    """An image like no other."""
    from PIL import Image

    return Image.linear_gradient("L").rotate(number % 360).convert("RGB").point(lambda value: (value + number) % 256)


if __name__ == "__main__":
    main()
