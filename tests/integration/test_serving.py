"""A real server and OpenAI's own client: answers, errors, limits, and what happens when something dies."""

import asyncio
import base64
import io
import json
import os
import random
import signal
import struct
import subprocess
import time
import zlib
from argparse import Namespace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.pico import pico_loaded
from tests.serving import serving
from vlmrun.cli.chat import _parser
from vlmrun.data.templates import TEMPLATES
from vlmrun.serve import chat
from vlmrun.weights import native

pytestmark = pytest.mark.slow
RUNNING, QUEUE = 8, 30
MANY = int(os.environ.get("VLMRUN_MANY_REQUESTS", "200"))  # 2000 takes minutes: `make test-serving`


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pico model's folder."""
    folder = tmp_path_factory.mktemp("pico")
    fields = TEMPLATES["micro"].to_dict()
    native.save(folder / "weights", pico_loaded(folder / "parts"), template=fields, image_aspect="pad", tensors={})
    return folder / "weights"


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    limits = ["--workers=2", f"--batch={RUNNING // 2}", f"--queue={QUEUE}", "--max-tokens=400", "--max-megapixels=2"]
    with serving(tmp_path_factory.mktemp("server"), f"pico={folder}", "--alias", "gpt=pico", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def chatted(folder):
    """`vlmrun chat`'s answer."""

    def answer(text, *images, max_new_tokens=20):
        options = Namespace(**{**vars(_parser().parse_args(["x"])), "max_new_tokens": max_new_tokens})
        return chat.open_dialogue(folder, options).ask(text, [Image.open(io.BytesIO(image)) for image in images])

    return answer


def png(seed, size=(20, 14)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def question(text, *images):
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(text="What is it?", *images, **more):
    return {"model": "pico", "messages": [question(text, *images)], "max_tokens": 20, **more}


def test_models_and_aliases(client):
    assert [model.id for model in client.models.list()] == ["pico", "gpt"]
    assert client.models.retrieve("gpt").root == "pico"
    with pytest.raises(openai.NotFoundError, match="did you mean 'pico'"):
        client.models.retrieve("pica")


def test_an_answer_is_that_of_chat(client, chatted):
    images = (png(0), png(1))
    answer = client.chat.completions.create(**body("Which is it?", *images))
    assert answer.choices[0].message.content == chatted("Which is it?", *images)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 20


def test_a_dialogue_is_that_of_chat(client, folder):
    options = Namespace(**{**vars(_parser().parse_args(["x"])), "max_new_tokens": 8})
    dialogue = chat.open_dialogue(folder, options)
    messages = []
    for text, images in (("What is it?", [png(0)]), ("Sure?", []), ("And this?", [png(1)])):
        messages.append(question(text, *images))
        answer = client.chat.completions.create(model="gpt", messages=messages, max_completion_tokens=8)
        said = answer.choices[0].message.content
        assert said == dialogue.ask(text, [Image.open(io.BytesIO(image)) for image in images])
        messages.append({"role": "assistant", "content": said})


def test_a_stream_is_the_answer(client):
    whole = client.chat.completions.create(**body("What is it?", png(0)))
    pieces = list(client.chat.completions.create(**body("What is it?", png(0), stream=True)))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    counted = list(
        client.chat.completions.create(
            **body("What is it?", png(0), stream=True, stream_options={"include_usage": True})
        )
    )
    assert counted[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert counted[-1].choices == []


def test_choices_seeds_and_stops(client):
    hot = body("What is it?", temperature=2.0, seed=5, n=3)
    texts = [choice.message.content for choice in client.chat.completions.create(**hot).choices]
    assert texts == [choice.message.content for choice in client.chat.completions.create(**hot).choices]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for piece in client.chat.completions.create(**hot, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    plain = client.chat.completions.create(**body()).choices[0].message.content
    stopped = client.chat.completions.create(**body(stop=[plain[3:5], "never"])).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (plain[: plain.index(plain[3:5])], "stop")


def test_logprobs(client):
    answer = client.chat.completions.create(**body(logprobs=True, top_logprobs=2))
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert all(token.top_logprobs[0].logprob == token.logprob >= token.top_logprobs[1].logprob for token in tokens)


def test_completions_continue_a_text(client):
    greedy = client.completions.create(model="pico", prompt="What is", max_tokens=10)
    again = client.completions.create(model="pico", prompt="What is", max_tokens=10, stream=True)
    assert "".join(piece.choices[0].text for piece in again) == greedy.choices[0].text
    # The template's question, written out, is the chat's.
    template = TEMPLATES["micro"]
    text = template.prompt([chat_turn("What is it?")])
    written = client.completions.create(model="pico", prompt=text, max_tokens=20).choices[0].text
    assert written.strip() == client.chat.completions.create(**body()).choices[0].message.content


def chat_turn(text):
    from vlmrun.data.sample import Turn

    return Turn("user", text)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "pica"}, 404, "did you mean 'pico'"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_tokens": 100_000}, 400, "at most 400"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"temprature": 1}, 400, "unknown parameter 'temprature'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "not a question"),
        ({"messages": [question("x" * 2000)]}, 400, "the model takes 128"),
        ({"messages": [question("<image>")]}, 400, "stands in the text"),
        ({"messages": [question("x", b"no image")]}, 400, "cannot be read"),
        ({"messages": [question("x", png(0)[:60])]}, 400, "cannot be read"),
        ({"messages": [question("x", png(0, (2000, 1001)))]}, 413, "at most 2 million pixels"),
        ({"messages": [question("\ud800")]}, 400, "half a character"),
        ({"stream_options": {"include_usage": True}}, 400, "of streams"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
    ],
)
def test_mistakes_are_explained(server, change, status, message):
    answer = httpx.post(server.url + "/v1/chat/completions", content=json.dumps({**body(), **change}), headers=JSON)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert message in error["message"]
    assert error["what"]
    assert error["fix"]


JSON = {"content-type": "application/json"}


def test_addresses_are_not_fetched(server):
    for url in ("http://127.0.0.1/x.png", "file:///etc/passwd", "ftp://x/y", "http://169.254.169.254/"):
        sent = {
            "model": "pico",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
        }
        assert httpx.post(server.url + "/v1/chat/completions", json=sent).status_code == 400


def test_other_hosts_and_types_are_refused(server):
    """What a page of another site could send through the user's browser."""
    assert httpx.get(server.url + "/v1/models", headers={"host": "evil.example"}).status_code == 400
    plain = httpx.post(
        server.url + "/v1/chat/completions", content=json.dumps(body()), headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 400
    assert httpx.get(server.url + "/v1/chat/completions").status_code == 405
    assert httpx.get(server.url + "/nowhere").status_code == 404


def header_of(width, height):
    """A PNG that is nothing but a header."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_bombs_cost_a_header(server):
    before = memory(server)
    for size in ((30_000, 30_000), (2**31 - 1, 2**31 - 1), (1, 1_900_000)):
        answer = httpx.post(server.url + "/v1/chat/completions", json=body("x", header_of(*size)))
        assert answer.status_code in (400, 413), answer.text
    assert memory(server) < before + 50 * 2**20


def memory(server):
    """Bytes that the server and its workers hold."""
    pids = [server.process.pid, *server.workers()]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)


def test_mutated_bodies_are_only_refused(server):
    """No body makes the server fail: what is not answered is refused, and both workers live."""
    workers = server.workers()
    chance = random.Random(0)
    sound = json.dumps(body("What is it?", png(0), max_tokens=1, temperature=0.5, stop=["x"], n=1)).encode()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(MANY):
            answer = client.post("/v1/chat/completions", content=mutated(sound, chance), headers=JSON)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    assert server.workers() == workers


def mutated(sound, chance):
    """A few bytes changed, cut, doubled, or a value replaced by one of another kind."""
    if chance.random() < 0.5:
        value = json.loads(sound)
        key = chance.choice(list(value))
        odd = [None, -1, 10**30, 1e308, "", "\x00", [], {}, [[]], True, "x" * 5000, [{"role": "user"}], {"a": {"b": 1}}]
        value[key] = chance.choice(odd)
        return json.dumps(value).encode()
    changed = bytearray(sound)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(changed))
        if chance.random() < 0.6:
            changed[at] = chance.randrange(256)
        else:
            changed[at : at + chance.randrange(40)] = bytes(changed[:20]) if chance.random() < 0.5 else b""
    return bytes(changed)


def test_a_hundred_at_once(server, client):
    """Nobody gets another's answer; those beyond the queue get 429 at once, and the memory stays."""
    texts = [f"Which is number {n}?" for n in range(100)]
    expected = {text: client.chat.completions.create(**body(text)).choices[0].message.content for text in texts}
    assert len(set(expected.values())) > 10

    async def ask(session, text):
        answer = await session.post("/v1/chat/completions", json=body(text))
        return text, answer

    async def all_at_once():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as session:
            return await asyncio.gather(*(ask(session, text) for text in texts))

    answers = asyncio.run(all_at_once())
    served = [(text, answer.json()) for text, answer in answers if answer.status_code == 200]
    refused = [answer for _, answer in answers if answer.status_code == 429]
    assert len(served) + len(refused) == 100
    assert len(served) >= RUNNING + QUEUE
    assert refused, "a hundred fit into the queue"
    assert all(answer.headers["retry-after"] for answer in refused)
    assert all(answer["choices"][0]["message"]["content"] == expected[text] for text, answer in served)
    client.chat.completions.create(**body())  # and there is room again


def test_memory_stays(server):
    async def many(number):
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as session:
            room = asyncio.Semaphore(8)

            async def one(n):
                async with room:
                    sent = body(f"Which is {n}?", png(n % 50), max_tokens=2)
                    assert (await session.post("/v1/chat/completions", json=sent)).status_code == 200

            await asyncio.gather(*(one(n) for n in range(number)))

    asyncio.run(many(100))
    before = memory(server)
    asyncio.run(many(MANY))
    assert memory(server) < before + 40 * 2**20


def test_who_leaves_is_not_computed_for(server):
    # The greedy answer ends by itself within 0.1 s; this one has all 400 tokens.
    long = body("Count.", max_tokens=400, stream=True, temperature=2, seed=5)
    before = cancelled(server)
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=long) as answer:
        next(answer.iter_lines())
    for _ in range(50):
        if running(server) == 0:
            break
        time.sleep(0.1)
    assert running(server) == 0
    with pytest.raises(httpx.TimeoutException):
        httpx.post(server.url + "/v1/chat/completions", json={**long, "stream": False}, timeout=0.05)
    for _ in range(50):
        if cancelled(server) > before:
            break
        time.sleep(0.1)
    assert cancelled(server) == before + 1


def metric(server, name):
    text = httpx.get(server.url + "/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


def running(server):
    return metric(server, "vlmrun_running")


def cancelled(server):
    return metric(server, "vlmrun_cancelled_total")


def test_a_killed_worker_costs_its_own_streams_and_comes_back(server, client):
    """Of two streams on two workers one ends with an error, the other goes on; both workers are back within 5 s."""
    # Penalties keep the answers from ending early.
    long = body("Count.", max_tokens=400, stream=True, temperature=1.0, seed=1, frequency_penalty=2)
    streams = [client.chat.completions.create(**long) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    restarts = metric(server, "vlmrun_worker_restarts_total")
    os.kill(server.workers()[0], signal.SIGKILL)
    killed = time.monotonic()
    ends = []
    for stream in streams:
        try:
            ends.append([piece.choices[0].finish_reason for piece in stream][-1])
        except openai.APIError as error:
            ends.append(error.message)
    assert sorted(end in ("stop", "length") for end in ends) == [False, True], ends
    assert any("the worker that was answering died" in str(end) for end in ends)
    while httpx.get(server.url + "/health").json()["ready"] < 2:
        assert time.monotonic() < killed + 5 * max(1, os.getloadavg()[0] / 2), "not back"
        time.sleep(0.1)
    assert metric(server, "vlmrun_worker_restarts_total") == restarts + 1
    assert client.chat.completions.create(**body()).choices


def test_no_socket_leaves_the_machine(server):
    """Stands last: looks at every socket that the server and its workers have opened so far."""
    assert server.sockets.exists()
    assert server.far() == []


def test_it_drains_and_asks_for_the_key(folder, tmp_path):
    """What is under way when it is told to stop is answered; nobody asks without the key."""
    with serving(tmp_path, f"pico={folder}", VLMRUN_API_KEY="secret") as server:
        assert httpx.post(server.url + "/v1/chat/completions", json=body()).status_code == 401
        assert httpx.get(server.url + "/metrics", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(server.url + "/health").status_code == 200
        with openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client:
            stream = client.chat.completions.create(**body(max_tokens=300, temperature=1.0, seed=1, stream=True))
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            pieces = list(stream)
            assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(30) == 0
    assert "secret" not in "".join(server.said)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{f}", "--host=0.0.0.0"], 2, "there is no API key"),
        (["{f}", "{f}"], 2, "name them: NAME=ARTIFACT"),
        (["a={f}", "--alias=b=c"], 2, "names no model"),
        (["nowhere"], 4, "no artifact 'nowhere'"),
        (["{broken}"], 4, "fix:"),
    ],
)
def test_what_cannot_be_served_is_explained(folder, tmp_path, arguments, code, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.json").write_text("{}")
    given = [text.format(f=folder, broken=broken) for text in arguments]
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "vlmrun.cli", "serve", *given, "--port=0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
