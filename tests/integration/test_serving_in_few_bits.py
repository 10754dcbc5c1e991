"""`--load-4bit` and `--load-8bit`: bitsandbytes runs on this CPU. Served answers are those of chat in as many bits."""

from argparse import Namespace

import httpx
import pytest

from tests.pico import pico_loaded
from tests.serving import serving
from vlmrun.cli.chat import _parser
from vlmrun.data.templates import TEMPLATES
from vlmrun.serve import chat
from vlmrun.weights import native

pytestmark = pytest.mark.slow
TEXTS = ("What is it?", "Which shape?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    fields = TEMPLATES["micro"].to_dict()
    native.save(folder / "weights", pico_loaded(folder / "parts"), template=fields, image_aspect="pad", tensors={})
    return folder / "weights"


def logprobs(url, text):
    """Text of a greedy answer, and the log-probabilities of its tokens."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "messages": messages, "max_tokens": 12, "logprobs": True, "top_logprobs": 1}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What the model says as it was saved."""
    with serving(tmp_path_factory.mktemp("whole"), f"m={folder}") as server:
        return [logprobs(server.url, text) for text in TEXTS]


@pytest.mark.parametrize("bits", [4, 8])
def test_served_answers_are_those_of_chat(folder, whole, tmp_path, bits):
    option = f"--load-{bits}bit"
    options = Namespace(**{**vars(_parser().parse_args(["x", option])), "max_new_tokens": 12})
    with serving(tmp_path, f"m={folder}", option) as server:
        served = [logprobs(server.url, text) for text in TEXTS]
    assert [text for text, _ in served] == [chat.open_dialogue(folder, options).ask(text) for text in TEXTS]
    assert [values for _, values in served] != [values for _, values in whole], "its layers have fewer bits"
