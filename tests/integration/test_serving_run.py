"""What a finished run is asked over HTTP is what its evaluation asked, adapters share their base, and a checkpoint of
training can be talked to."""

import base64
import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.serving import serving
from vlmrun import back, store
from vlmrun.data.sample import Turn
from vlmrun.formats.load import describe
from vlmrun.serve.engine import Engine
from vlmrun.serve.messages import Plan, Sampling
from vlmrun.serve.opening import open_model, open_models
from vlmrun.serve.question import Question
from vlmrun.serve.served import Served

pytestmark = pytest.mark.slow
MODELS = ("instruct", "lora", "lora2")


def answer(model, text, engine=None, max_tokens=12):
    parts = []
    prompt = model.conversation([Turn("user", text)], [])
    question = Question(model, prompt, Sampling(), max_tokens, lambda news: parts.append(news.text))
    (engine or Engine(batch=1, remembered=0)).answer(question)
    return "".join(parts)


def test_adapters_share_their_base(tiny_run):
    """Three models in the memory of one; what each says is what it says alone, whoever was asked before."""
    folders = {name: tiny_run.stage(name) for name in MODELS}
    plan = Plan(tuple((n, str(f)) for n, f in folders.items()), "auto", "sdpa", None, 8, 0, None)
    shared = open_models(plan)
    tensors = [next(model.llm.parameters()) for model in shared.values()]
    assert all(tensor is tensors[0] for tensor in tensors)
    alone = {n: Served(n, open_model(f), describe(f)["image_aspect"]) for n, f in folders.items()}
    expected = {name: answer(model, "What color is it?") for name, model in alone.items()}
    together = Engine(batch=8, remembered=2**20)
    for name in (*MODELS, *reversed(MODELS)):
        assert answer(shared[name], "What color is it?", together) == expected[name], name
    asked = [Counted(shared[name], "What color is it?") for name in MODELS]
    for each in asked:
        together.submit(each.question)
    while together.busy:
        together.step()
    assert [each.text for each in asked] == [expected[name] for name in MODELS]


class Counted:
    """A question and its answer."""

    def __init__(self, model, text):
        self.text = ""
        prompt = model.conversation([Turn("user", text)], [])
        self.question = Question(model, prompt, Sampling(), 12, self.tell)

    def tell(self, news):
        self.text += news.text


def test_answers_over_http_are_those_of_the_evaluation(tiny_run, tmp_path):
    """And so are its scores: they are made from the answers."""
    rows = [json.loads(line) for line in (tiny_run.stage("eval_merge") / "answers.jsonl").read_text().splitlines()]
    rows = rows[:12]
    assert rows
    job = json.loads((tiny_run.stage("eval_merge") / "job.json").read_text())
    with serving(tmp_path, "merge", f"--output={tiny_run.output}") as server:
        for row in rows:
            images = images_of(job, row)
            content = [
                *({"type": "image_url", "image_url": {"url": url}} for url in images),
                {"type": "text", "text": row["text"]},
            ]
            body = {
                "model": "merge",
                "max_tokens": job["stage"]["max_new_tokens"],
                "messages": [{"role": "user", "content": content}],
            }
            found = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()
            assert found["choices"][0]["message"]["content"] == row["answer"]


def images_of(job, row):
    if not row["image"]:
        return []
    root = Path(job["data"][row["data"]]["images"])
    return [f"data:image/png;base64,{base64.b64encode((root / row['image']).read_bytes()).decode()}"]


def test_a_checkpoint_of_training_is_talked_to(tiny_run, tmp_path):
    """The newest whole one of a stage that has not finished; training may remove it meanwhile."""
    back.know_checkpoints()  # as `chat` and `serve` do
    steps = sorted((tiny_run.stage("lora") / "checkpoints").glob("step-*"))
    assert steps
    stage = tmp_path / "outputs" / "stages" / tiny_run.stage("lora").name
    shutil.copytree(tiny_run.stage("lora"), stage, ignore=shutil.ignore_patterns("artifact.json", "weights"))
    found = store.find(tmp_path / "outputs", "lora", training=True)
    assert found.parent.parent == stage
    with store.snapshot(found) as copy:
        shutil.rmtree(found)
        checkpoint = Served("x", open_model(copy), describe(copy, store.came_as(copy))["image_aspect"])
    finished = Served("y", open_model(tiny_run.stage("lora")), describe(tiny_run.stage("lora"))["image_aspect"])
    assert answer(checkpoint, "What color is it?") == answer(finished, "What color is it?")  # the last step's
    assert not list(stage.glob(".served-*"))
