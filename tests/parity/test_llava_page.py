"""What LLaVA's page sends for a model's name, and models of LLaVA's workers under OpenAI's routes."""

import asyncio
import base64
import http.server
import io
import json
import re
import threading

import httpx
import pytest
from PIL import Image

from tests.parity.golden import cases
from vlmrun.data.sample import Turn
from vlmrun.serve.app import make_app
from vlmrun.serve.limits import Limits
from vlmrun.serve.llava import Door
from vlmrun.serve.llava_models import template_of
from vlmrun.serve.service import Service


def test_the_prompt_for_a_name():
    for case in cases("g8_eval/web_template.jsonl.gz"):
        template, expected = template_of(case["input"]), case["output"]
        if "error" in expected:
            assert template.name == "mpt", "upstream names a template that it does not have"
            continue
        prompt = template.prompt([Turn("user", "<image>\nq")]).removeprefix("<s>")
        # Models of that style were trained with a space behind the signs; the original page leaves it out.
        if "mmtag" not in template.name:  # for these it makes up a turn about the image that no training had
            assert re.sub(r"\s*### ", "###", prompt) == expected["prompt"], case["input"]
        assert template.name in expected["template_one_of"]
        assert template.stop[0] == expected["stop"], case["input"]


class Worker(http.server.BaseHTTPRequestHandler):
    """As LLaVA's: the whole text again and again, and a NUL byte after each. `server.says` are the answers so far."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        self.send_response(200)
        self.end_headers()
        if self.path == "/worker_get_status":
            self.wfile.write(json.dumps({"model_names": ["llava-v1.5-7b"], "speed": 1, "queue_length": 0}).encode())
            return
        self.server.asked.append(body)
        for text, code in self.server.says:
            text = text if code else body["prompt"] + text
            self.wfile.write(json.dumps({"text": text, "error_code": code}).encode() + b"\0")

    def log_message(self, *_):
        pass


@pytest.fixture
def worker():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker) as server:
        server.asked, server.says = [], [(" A", 0), (" A ring", 0), (" A ring.", 0)]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class NoWorkers:
    """Our own pool, with nothing in it."""

    models: dict = {}
    workers: list = []


def ask(worker, *bodies):
    """Answers of our server to bodies of chat completions, once the worker has registered; before them the models."""

    async def all_():
        service = Service(NoWorkers(), Limits(), {})
        app = make_app(service, key=None, hosts=["*"], more=Door(service).routes())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            me = {"worker_name": f"http://127.0.0.1:{worker.server_port}", "check_heart_beat": True}
            assert (await client.post("/register_worker", json=me)).status_code == 200
            chat = [await client.post("/v1/chat/completions", json=body) for body in bodies]
            return [await client.get("/v1/models"), *chat]

    return asyncio.run(all_())


def question(**more):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    return data, {"model": "llava-v1.5-7b", "messages": messages, "max_tokens": 7, **more}


def test_a_model_of_a_registered_worker_is_asked_like_ours(worker):
    data, body = question()
    models, whole, stream = ask(worker, body, {**body, "stream": True, "temperature": 0.5, "top_p": 0.9})
    assert [model["id"] for model in models.json()["data"]] == ["llava-v1.5-7b"]
    assert whole.json()["choices"][0]["message"]["content"] == "A ring."
    pieces = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert [p["choices"][0]["delta"].get("content") for p in pieces][1:4] == ["A", " ring", "."]
    first, second = worker.asked
    assert first["images"] == [data]
    assert first["prompt"].endswith("USER: <image>\nWhat is it? ASSISTANT:")
    assert (first["temperature"], first["max_new_tokens"], first["stop"]) == (0.0, 7, "</s>")
    assert (second["temperature"], second["top_p"]) == (0.5, 0.9)


@pytest.mark.parametrize("more", [{"seed": 1}, {"n": 2}, {"stop": "x"}, {"logprobs": True}, {"top_k": 3}])
def test_what_such_a_worker_does_not_take_is_refused(worker, more):
    answer = ask(worker, question(**more)[1])[1]
    assert (answer.status_code, worker.asked) == (400, [])
    assert answer.json()["error"]["what"] == "LLaVA's workers do not take this"


@pytest.mark.parametrize("chunk", [("out of memory", 1), (None, 1), ({}, 2)])
def test_a_worker_that_fails_is_an_error_with_its_words(worker, chunk):
    worker.says = [chunk]
    answer = ask(worker, question()[1])[1]
    assert answer.status_code == 503
    assert (chunk[0] or "its chunk has no text") in answer.json()["error"]["message"]


def test_nobody_waits_for_a_worker_that_has_gone(worker):
    async def all_():
        service = Service(NoWorkers(), Limits(), {})
        app = make_app(service, key=None, hosts=["*"], more=Door(service).routes())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            status = {"model_names": ["llava-v1.5-7b"], "speed": 1, "queue_length": 0}
            me = {"worker_name": "http://127.0.0.1:9", "check_heart_beat": True, "worker_status": status}
            await client.post("/register_worker", json=me)
            return await client.post("/v1/chat/completions", json=question()[1])

    answer = asyncio.run(all_())
    assert answer.status_code == 503
    assert answer.json()["error"]["fix"] == "look at that worker's output"
