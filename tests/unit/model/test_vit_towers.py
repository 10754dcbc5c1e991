"""Towers of the families of towers/vit: features, parameters that learn, saving, and what is refused."""

import json

import pytest
import torch
import transformers

from tests.unit.model.test_square_connectors import _equal
from vlmrun.arch import towers as arch
from vlmrun.arch.vits import ROWS
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model.pretrained import quietly
from vlmrun.model.towers.vit import Vit

HOW = {"dtype": torch.float32, "attention": "eager"}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
OWN = {
    "dinov2_with_registers": {"num_register_tokens": 3, "mlp_ratio": 2},
    "dinov3_vit": {"num_register_tokens": 2},
    "internvl_vision": {"image_size": [32, 32], "patch_size": [8, 8]},
}


def config(name):
    return {"model_type": name, **SIZES, **OWN.get(name, {})}


@pytest.fixture(params=sorted(ROWS))
def family(request):
    return request.param


def made(family, **changes):
    torch.manual_seed(0)
    return Vit(config=config(family), **changes, **HOW).eval()


def test_features_are_the_hidden_states_of_plain_transformers_without_class_and_registers(family):
    tower = made(family, layers=[0, 1, -2])
    pixels = torch.randn(2, 3, 32, 32)
    found = tower(pixels)
    states = tower.model(pixels, output_hidden_states=True).hidden_states
    leading = states[0].shape[1] - 16
    assert tower.n_patches == 16
    assert tower.first == leading == ROWS[family].leading + OWN.get(family, {}).get("num_register_tokens", 0)
    assert tower.hidden_dim == 3 * 32
    for ours, index in zip(found, (0, 1, 2), strict=True):
        _equal(ours, states[index][:, leading:])
    target = Target.model_validate({"_target_": "vlmrun.model.towers.vit.Vit", "config": config(family)})
    assert arch.facts(target) == arch.Facts(32, 3, 16, 32)


@pytest.mark.parametrize("size", [24, 36, 48, 0])
def test_another_size_is_taken_as_it_is_said_or_refused_before_and_by_the_class(family, size):
    values = {"_target_": "vlmrun.model.towers.vit.Vit", "config": config(family), "image_size": size}
    target = Target.model_validate(values)
    if ROWS[family].resizable and size in (24, 48):
        features = made(family, image_size=size)(torch.randn(1, 3, size, size))
        assert features[0].shape[1] == (size // 8) ** 2 == arch.facts(target).n_patches
        return
    what = "no multiple of the patch" if ROWS[family].resizable else "takes images of 32 pixels only"
    for refused in (lambda: made(family, image_size=size), lambda: arch.facts(target)):
        with pytest.raises(ConfigError, match=what) as caught:
            refused()
        assert caught.value.problems[0].where == "model.tower.image_size"


def test_the_size_of_the_weights_may_be_said(family):
    assert made(family, image_size=32)(torch.randn(1, 3, 32, 32))[0].shape[1] == 16


def test_aimv2_with_computed_positions_takes_any_size():
    tower = Vit(config=config("aimv2_vision_model") | {"is_native": True}, image_size=48, **HOW)
    assert tower(torch.randn(1, 3, 48, 48))[0].shape[1] == 36


def test_what_the_features_depend_on_is_what_learns(family):
    tower = made(family)
    sum(feature.square().sum() for feature in tower(torch.randn(1, 3, 32, 32))).backward()
    unused = {id(parameter) for parameter in tower.unused()}
    for name, parameter in tower.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in unused), name
    assert 0 < len(unused) < len(list(tower.parameters()))


def test_a_folder_gives_the_same_features_and_its_statistics(family, tmp_path):
    tower = made(family)
    with quietly():
        tower.model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tower.config_dict()))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "size": 7}))
    again = Vit(str(tmp_path), **HOW)
    pixels = torch.randn(1, 3, 32, 32)
    _equal(again(pixels)[0], tower(pixels)[0])
    assert again.source == tmp_path
    assert again.preprocessor["image_mean"] == [0.1, 0.2, 0.3]
    assert again.preprocessor["crop_size"] == {"height": 32, "width": 32}
    tower.set_gradient_checkpointing(True)
    tower.train()(pixels)[0].sum().backward()


def test_every_row_is_a_class_of_transformers():
    for row in ROWS.values():
        assert hasattr(transformers, row.model)
        assert hasattr(transformers, row.config)


def test_a_family_that_is_not_known_is_named_with_the_nearest_and_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)'dinov3_vt'.*did you mean 'dinov3_vit'\?.*own-parts.md"):
        Vit(config={"model_type": "dinov3_vt"}, **HOW)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(CheckpointError, match=r"(?s)family 'siglip'.*model/tower=siglip"):
        Vit(str(tmp_path), **HOW)
