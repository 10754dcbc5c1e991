"""Vision towers and connectors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pico import IMAGE_SIZE, N_PATCHES, TOWER, pico_tower
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model.connectors.mlp import MLP
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.siglip import Siglip

KINDS = {"clip": Clip, "siglip": Siglip}
HOW = {"dtype": torch.float32, "attention": "sdpa"}


def _pixels(n=2):
    return torch.randn(n, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [[0], [1], [2], [-1], [-2], [-3], [0, 2], [2, 1], [-1, -2]])
def test_layers_are_the_hidden_states_of_transformers(kind, layers):
    tower = KINDS[kind](config=dict(TOWER), layers=layers, **HOW)
    states = tower.model(_pixels(), output_hidden_states=True).hidden_states
    found = tower(_pixels())
    assert len(found) == len(layers)
    assert tower.hidden_dim == 16 * len(layers)
    for layer, feature in zip(layers, found, strict=True):
        expected = states[layer][:, 1:] if kind == "clip" else states[layer]
        assert feature.shape == (2, tower.n_patches, 16)
        assert torch.equal(feature, expected)


def test_clip_can_keep_its_class_token():
    tower = Clip(config=dict(TOWER), layers=[-2], feature="cls_patch", **HOW)
    assert tower.n_patches == N_PATCHES + 1
    assert torch.equal(tower(_pixels())[0], tower.model(_pixels(), output_hidden_states=True).hidden_states[-2])
    with pytest.raises(ConfigError, match=r"did you mean 'patch'"):
        Clip(config=dict(TOWER), feature="patches", **HOW)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [[-2], [1], [-1], [0]])
def test_unused_parameters_are_exactly_those_without_gradient(kind, layers):
    tower = KINDS[kind](config=dict(TOWER), layers=layers, **HOW)
    sum(feature.square().sum() for feature in tower(_pixels())).backward()
    unused = {id(p) for p in tower.unused()}
    assert unused == {id(p) for p in tower.parameters() if p.grad is None}


@pytest.mark.parametrize("layers", [[3], [-4], [0, 9], []])
def test_a_layer_that_is_not_there_is_an_error(layers):
    with pytest.raises(ConfigError, match=r"to 2, or -1 to -3 from the end"):
        Clip(config=dict(TOWER), layers=layers, **HOW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_with_its_preprocessor(tmp_path, kind):
    folder = pico_tower(tmp_path / "tower", kind)
    tower = KINDS[kind](str(folder), **HOW)
    stored = load_file(folder / "model.safetensors")
    for name, parameter in tower.named_parameters():
        assert torch.equal(parameter, stored[tower.saved_name(name)])
    assert tower.source == folder
    assert tower.preprocessor == json.loads((folder / "preprocessor_config.json").read_text())
    assert not tower.model.training


def test_old_names_of_a_whole_clip_model_load_too(tmp_path):
    """Published CLIP folders hold the text model as well, and `vision_model.` before every name."""
    folder = pico_tower(tmp_path / "tower")
    plain = Clip(str(folder), **HOW)
    stored = load_file(folder / "model.safetensors")
    whole = {f"vision_model.{name}": tensor for name, tensor in stored.items()} | {"logit_scale": torch.ones(())}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    vision = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    assert torch.equal(Clip(str(folder), **HOW)(_pixels())[0], plain(_pixels())[0])


def test_what_does_not_fit_is_an_error_not_a_random_weight(tmp_path):
    folder = pico_tower(tmp_path / "tower")
    with pytest.raises(CheckpointError, match="holds a 'clip_vision_model' model"):
        Siglip(str(folder), **HOW)
    stored = load_file(folder / "model.safetensors")
    name = next(iter(sorted(stored)))
    save_file({k: v for k, v in stored.items() if k != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 weights are missing, first '{name}'"):
        Clip(str(folder), **HOW)
    save_file(stored | {name: torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Clip(str(folder), **HOW)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Clip(str(folder), **HOW)


def test_a_tower_without_preprocessor_or_with_two_origins_is_an_error(tmp_path):
    folder = pico_tower(tmp_path / "tower")
    with pytest.raises(ConfigError, match="either `path` or `config`"):
        Clip(str(folder), dict(TOWER), **HOW)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        Clip(str(folder), **HOW)


def test_a_random_tower_has_a_preprocessor_of_its_size():
    assert Siglip(config=dict(TOWER), **HOW).preprocessor["size"] == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    assert Clip(config=dict(TOWER), **HOW).preprocessor["crop_size"] == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_is_linear_layers_with_exact_gelu_between(depth):
    connector = MLP(6, 5, depth)
    layers = [torch.randn(2, 3, 4), torch.randn(2, 3, 2)]
    value = torch.cat(layers, dim=-1)
    state = connector.state_dict()
    for index in range(depth):
        if index:
            value = value * 0.5 * (1 + torch.erf(value / 2**0.5))
        value = value @ state[f"layers.{2 * index}.weight"].T + state[f"layers.{2 * index}.bias"]
    assert torch.allclose(connector(layers), value, atol=1e-6)
    assert len(state) == 2 * depth
    assert connector.tokens(7) == 7


def test_mlp_needs_a_layer():
    with pytest.raises(ConfigError, match="depth 0"):
        MLP(4, 4, 0)
