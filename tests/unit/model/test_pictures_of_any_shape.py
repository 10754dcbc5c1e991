"""Pictures of their own shapes through tower and connector, and slices through those that know none."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests import pico_minicpm
from tests.pico import pico_model_config
from vlmrun.config.schema import ModelConfig, Slices, Target
from vlmrun.data import templates
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.sample import Sample, Turn
from vlmrun.errors import ConfigError
from vlmrun.model.parts import assemble

HOW = {"dtype": torch.float32, "attention": "sdpa"}
SHAPES = [(40, 30), (64, 40), (20, 120)]
ATOL = 1e-5  # fp32, batches of other shapes


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return assemble(pico_minicpm.model(tmp_path_factory.mktemp("pico")), **HOW, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for index, (width, height) in enumerate(SHAPES):
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return place


def _encoder(loaded, template):
    return Encoder(
        template=templates.get(template),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor, loaded.model.tiles),
        aspect="slices",
        image_tokens=loaded.vlm.image_tokens,
        max_length=400,
        slices=loaded.model.tiles,
    )


def _batches(loaded, folder, template="minicpm_v25"):
    """All samples together, and each alone."""
    encoder = _encoder(loaded, template)
    named = [("0.png", "2.png"), ("1.png",), ()]
    items = []
    for index, images in enumerate(named):
        turns = (Turn("user", "<image>\n" * len(images) + "Which?"), Turn("assistant", "red" * (index + 1)))
        sample = Sample(str(index), images, turns, ("f", index))
        pixels, layouts = encoder.pixels(sample, ImageFolder(folder))
        items.append(Item(encoder.encode(sample, layouts), pixels, str(index), layouts=layouts))
    collate = Collator(0, loaded.vlm.image_tokens, loaded.vlm.image_size)
    return collate(items), [collate([item]) for item in items]


def _logits(vlm, batch):
    names = ("input_ids", "attention_mask", "pixels", "layouts")
    with torch.no_grad():
        return vlm(**{name: batch[name] for name in names}).logits


def _check_alone_and_together(loaded, folder, template):
    together, alone = _batches(loaded, folder, template)
    found = _logits(loaded.vlm, together)
    for row, batch in enumerate(alone):
        one = _logits(loaded.vlm, batch)[0]
        assert torch.allclose(found[row, : len(one)], one, atol=ATOL)


def test_a_sample_gives_the_same_alone_and_among_others(loaded, folder):
    _check_alone_and_together(loaded, folder, "minicpm_v25")


def test_with_25s_quirks_it_depends_on_the_others(loaded, folder, tmp_path):
    odd = assemble(pico_minicpm.model(tmp_path, positions="strip", sees_padding=True), **HOW, seed=0)
    with pytest.raises(AssertionError):
        _check_alone_and_together(odd, folder, "minicpm_v25")


@pytest.mark.parametrize("connector", ["mlp.MLP", "resampler.Resampler", "resampler.FixedResampler"])
def test_any_tower_takes_slices_of_its_own_size(folder, tmp_path, connector):
    """Bunny with slices: a SigLIP of one size, with and without a resampler."""
    plain = pico_model_config(tmp_path, tower="siglip")
    target = {"_target_": f"vlmrun.model.connectors.{connector}"}
    more = {} if connector == "mlp.MLP" else {"queries": 9}
    tiles = Slices(max_slices=4, resolution=32, marks=None, image_ids="never")
    model = plain.model_copy(update={"connector": Target.model_validate(target | more), "tiles": tiles})
    made = assemble(model, **HOW, seed=0)
    _check_alone_and_together(made, folder, "micro")
    assert made.vlm.image_tokens(None) == (4 if connector == "mlp.MLP" else 9)


def test_slices_of_their_own_shape_need_a_connector_that_takes_them(tmp_path):
    model = pico_minicpm.model(tmp_path)
    target = Target.model_validate({"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": 1})
    with pytest.raises(ConfigError, match="which MLP does not take"):
        assemble(model.model_copy(update={"connector": target}), **HOW, seed=0)


def test_every_trained_parameter_gets_a_gradient(loaded, folder):
    together, _ = _batches(loaded, folder)
    vlm = loaded.vlm.train()
    names = ("input_ids", "attention_mask", "pixels", "labels", "layouts")
    vlm(**{name: together[name] for name in names}).loss.backward()
    unused = {id(parameter) for parameter in vlm.tower.unused()}
    parameters = [*vlm.connector.named_parameters(), *vlm.tower.named_parameters()]
    assert not [name for name, p in parameters if id(p) not in unused and (p.grad is None or not p.grad.any())]
    vlm.eval().zero_grad()


def test_a_model_description_keeps_its_slices():
    values = {"_target_": "x"}
    model = {"llm": values, "tower": values, "connector": values, "template": "t", "max_length": 1,
             "image_markers": None, "new_tokens": []}  # fmt: skip
    for tiles in (None, {"grids": [[1, 2]], "merge": "flat"}, pico_minicpm.SLICES):
        read = ModelConfig.model_validate(model | {"tiles": tiles})
        assert ModelConfig.model_validate(read.model_dump(by_alias=True)) == read
        assert isinstance(read.tiles, Slices) == (tiles == pico_minicpm.SLICES)
