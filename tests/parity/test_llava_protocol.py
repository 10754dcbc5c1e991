"""The old protocol against recordings of the original controller and worker."""

import ast
import asyncio
import base64
import io
import itertools
import json

import httpx
import pytest
from PIL import Image

from tests.parity.golden import cases
from vlmrun.errors import DataError
from vlmrun.serve.app import Service, make_app
from vlmrun.serve.limits import Limits
from vlmrun.serve.llava import BROKEN, TOO_LONG, Door
from vlmrun.serve.llava_registry import EXPIRES, Registry
from vlmrun.serve.messages import News, Usage

SET = "g8_eval/serve_{}.jsonl.gz"


class Pool:
    """Stands in for workers: answers with a given text, word by word, and keeps what it was asked."""

    def __init__(self, models=(), answer=None):
        self.models = {name: {"context": 2048} for name in models}
        self.workers = []
        self.answer = answer
        self.asked = []

    async def answers(self, asks):
        self.asked += asks
        if isinstance(self.answer, Exception):
            raise self.answer
        words = self.answer.split(" ")
        pieces = [word + " " for word in words[:-1]] + words[-1:]
        for at, piece in enumerate(pieces):
            end = "stop" if at == len(pieces) - 1 else None
            yield 0, News(0, piece, (), end, Usage(1, at, 0, 0.0, 0.0))


def exchange(pool, requests, **door):
    """Answers of an application with LLaVA's routes to (path, body) pairs, one after another."""

    async def all_():
        service = Service(pool, Limits(tokens=4096), {})
        app = make_app(service, key=None, hosts=["*"], more=Door(service, **door).routes())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [await client.post(path, json={} if body is None else body) for path, body in requests]

    return asyncio.run(all_())


def chunks(answer):
    """What LLaVA's page makes of a stream."""
    parts = answer.content.split(b"\0")
    assert parts[-1] == b""
    return [json.loads(part) for part in parts[:-1]]


def recorded(kind, wanted):
    return [case for case in cases(SET.format(kind)) if wanted(case)]


def test_the_controller(monkeypatch):
    async def nobody(self, address):
        return None

    monkeypatch.setattr(Door, "_status_of", nobody)  # in the recording no worker's address can be reached
    for case in recorded("controller", lambda case: isinstance(case["output"], list)):
        steps = case["output"]
        answers = exchange(Pool(), [(step["route"], step["body"]) for step in steps], hosts=["*"])
        for step, answer in zip(steps, answers, strict=True):
            compare(step, answer)


def compare(step, answer):
    expected = step["response"]
    if expected["status"] != 200:
        assert 400 <= answer.status_code < 500, "a mistake of the client's, not ours"
    elif "chunks" in expected:
        found = chunks(answer)
        # The original sends a second chunk after the one that says that no worker has the model.
        assert [(c["text"], c["error_code"]) for c in found] in (
            [(c["text"], c["error_code"]) for c in expected["chunks"][:1]],
            [(BROKEN, 3)],
        ), step
        assert found[0]["error_code"] == expected["chunks"][0]["error_code"], step
    else:
        found, wanted = answer.json(), expected["json"]
        if isinstance(wanted, dict) and "models" in wanted:
            found["models"], wanted = sorted(found["models"]), {"models": sorted(wanted["models"])}
        assert found == wanted, step


def test_the_lottery():
    for case in recorded("controller", lambda case: "speeds" in case["input"]):
        registry = Registry("lottery", draw=iter([(n + 0.5) / 400 for n in range(400)]).__next__)
        speeds = case["input"]["speeds"]
        for number, speed in enumerate(speeds):
            registry.register(f"http://{number}", ("m",), speed, 0, beats=False)
        chosen = [registry.choose("m") for _ in range(400)]
        for number, speed in enumerate(speeds):
            assert chosen.count(f"http://{number}") == round(400 * speed / sum(speeds))


def test_silent_workers_expire():
    clock = [0.0]
    registry = Registry(now=lambda: clock[0])
    registry.register("http://a", ("m",), 1, 0, beats=True)
    registry.register("http://b", ("n",), 1, 0, beats=False)
    clock[0] = EXPIRES
    assert registry.models() == ["m", "n"]
    assert registry.beat("http://a", 0)
    clock[0] += EXPIRES + 1
    assert registry.models() == ["n"]
    assert not registry.beat("http://a", 0)


def worker_cases():
    def wanted(case):
        body, worker = case["input"].get("body"), case["input"].get("worker", "")
        # A worker whose name lacks "llava" ignores images in the original; ours never does.
        return body is not None and not (body.get("images") and "llava" not in worker)

    return recorded("worker", wanted)


def test_the_worker():
    for case in worker_cases():
        body = dict(case["input"]["body"])
        if body.get("images"):
            body["images"] = [png() for _ in body["images"]]
        expected = case["output"]["chunks"]
        last = expected[-1]["text"]
        prompt = body.get("prompt", "")
        too_long = last == prompt + TOO_LONG
        answer = DataError("the prompt has 9 tokens, the model takes 8") if too_long else last[len(prompt) :]
        pool = Pool([body.get("model", "m")], answer)
        found = chunks(exchange(pool, [("/worker_generate_stream", body)])[0])
        if expected[-1]["error_code"] != 0 and not forgiven(body):
            assert [chunk["error_code"] for chunk in found] == [expected[-1]["error_code"]], case["id"]
            continue
        if expected[-1]["error_code"] == 0:
            assert found[-1] == expected[-1], case["id"]
        assert all(chunk["error_code"] == 0 for chunk in found)
        assert all(b["text"].startswith(a["text"]) for a, b in itertools.pairwise(found))
        if " [(" in last and not too_long:
            compare_arguments(last, pool.asked[0])


def forgiven(body):
    """The original fails without a stop string, which was not meant."""
    return "prompt" in body and not isinstance(body.get("stop"), str)


def compare_arguments(echoed, ask):
    """The recorded model says what it was called with."""
    said = dict(ast.literal_eval(echoed[echoed.index("[(") : echoed.rindex(")]") + 2]))
    assert said["do_sample"] == (ask.sampling.temperature > 0)
    assert said["max_new_tokens"] <= ask.max_tokens  # less: what the context leaves, which our worker sees to
    if said["do_sample"]:
        assert (said["temperature"], said["top_p"]) == (ask.sampling.temperature, ask.sampling.top_p)


def png():
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_our_own_models_are_found_at_our_address():
    answers = exchange(Pool(["m"], "x"), [("/list_models", None), ("/get_worker_address", {"model": "m"})])
    assert [answer.json() for answer in answers] == [{"models": ["m"]}, {"address": "http://here"}]


@pytest.mark.parametrize("address", ["http://169.254.169.254", "file:///etc/passwd", "http://other:1"])
def test_workers_from_elsewhere_are_not_taken(address):
    body = {"worker_name": address, "check_heart_beat": True}
    assert exchange(Pool(), [("/register_worker", body)])[0].status_code == 400
