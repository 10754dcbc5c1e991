"""Chat, the server and its page see an image as evaluation and training do, whichever way a model was trained."""

import argparse
import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlmrun.cli import chat as cli_chat
from vlmrun.data.images.loading import image_of, load_image
from vlmrun.data.images.seeing import AS_UPSTREAM, ON_WHITE, View, color, view_of
from vlmrun.data.templates import TEMPLATES
from vlmrun.serve import chat, opening, worker
from vlmrun.serve.messages import Ask, Plan, Sampling
from vlmrun.serve.web import talk
from vlmrun.weights import native

WAYS = [None, "#ffffff", "#000000"]


@pytest.fixture(scope="module", params=WAYS)
def model(request, tmp_path_factory, loaded):
    """A folder of a model that was trained with a background, and that."""
    folder = tmp_path_factory.mktemp("model")
    fields = TEMPLATES["micro"].to_dict()
    native.save(
        folder / "weights", loaded, template=fields, image_aspect="pad", image_background=request.param, tensors={}
    )
    return folder, request.param


@pytest.fixture
def picture(tmp_path):
    """Half transparent, and to be turned."""
    path = tmp_path / "p.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 14, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def evaluated(picture, background):
    """Pixels as `stages.evaluate` opens them."""
    return np.asarray(load_image(picture, view=view_of(background)))


def test_the_ways_differ(picture):
    seen = [evaluated(picture, way) for way in WAYS]
    assert seen[0].shape != seen[1].shape
    assert not np.array_equal(seen[1], seen[2])


def test_chat_sees_what_evaluation_sees(model, picture, monkeypatch, capsys):
    folder, background = model
    seen = []
    ask = chat.Dialogue.ask
    monkeypatch.setattr(
        chat.Dialogue, "ask", lambda self, text, images=(), show=None: seen.extend(images) or ask(self, text, images)
    )
    given = vars(cli_chat._parser().parse_args(["x"])) | {"max_new_tokens": 1}
    options = argparse.Namespace(**given | {"image": [str(picture)], "prompt": "What?"})
    chat.main(folder, options)
    chat.answerer(folder, options)("What?", [picture], False)
    assert len(seen) == 2
    for image in seen:
        assert np.array_equal(np.asarray(image), evaluated(picture, background))


def test_the_server_sees_what_evaluation_sees(model, picture, monkeypatch):
    folder, background = model
    plan = Plan((("m", str(folder)),), "auto", "sdpa", None, 1, 2**20, None)
    models = opening.open_models(plan)
    assert worker._facts(models["m"])["image_background"] == background
    seen = []
    shown = models["m"].picture
    monkeypatch.setattr(models["m"], "picture", lambda image: seen.append(image) or shown(image))
    one = worker._Worker(SimpleNamespace(), models, SimpleNamespace())
    one._question(Ask(1, "m", None, "<image>\nWhat?", (picture.read_bytes(),), Sampling(), 1, 1))
    assert np.array_equal(np.asarray(seen[0]), evaluated(picture, background))


@pytest.mark.parametrize("background", WAYS)
def test_the_page_sends_what_evaluation_sees(picture, background):
    said = talk.Talk([talk.Exchange("What?", [str(picture)], [""])], ["m"])
    view = view_of(background)
    body = talk._body(said, 0, talk.Values(0.0, 1.0, 4, "Default"), view)
    url = json.loads(json.dumps(body))["messages"][0]["content"][0]["image_url"]["url"]
    sent = base64.b64decode(url.partition(",")[2])
    assert Image.open(io.BytesIO(sent)).mode == "RGB"
    assert np.array_equal(np.asarray(image_of(sent, "it", view=view)), evaluated(picture, background))


def test_a_view_is_told_by_its_color():
    assert [color(view) for view in (AS_UPSTREAM, ON_WHITE, View((1, 2, 255)))] == [None, "#ffffff", "#0102ff"]
    assert [view_of(color(view)) for view in (AS_UPSTREAM, ON_WHITE)] == [AS_UPSTREAM, ON_WHITE]
