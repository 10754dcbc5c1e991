"""DINOv2, timm's transformers and convolutional networks, several scales; and each of them saved and loaded."""

import json

import pytest
import torch

from tests.pico import TOWER, pico_llm, pico_tower
from vlmrun.config.schema import ModelConfig
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.formats.load import load
from vlmrun.model.parts import assemble
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.dinov2 import Dinov2
from vlmrun.model.towers.siglip import Siglip
from vlmrun.model.towers.timm import Timm
from vlmrun.weights import native

HOW = {"dtype": torch.float32, "attention": "eager"}
EVA = {
    "architecture": "eva02_large_patch14_clip_336",
    "model_args": {"depth": 3, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2},
    "pretrained_cfg": {"input_size": [3, 28, 28]},
}
CNN = {"architecture": "efficientnet_lite0", "pretrained_cfg": {"input_size": [3, 64, 64]}}
DINO = {**TOWER, "image_size": 16, "patch_size": 8, "mlp_ratio": 2}
DINO.pop("intermediate_size")

TOWERS = {
    "clip": (Clip, {"config": dict(TOWER), "layers": [-2]}),
    "clip, two scales": (Clip, {"config": dict(TOWER), "layers": [-2, 1], "scales": [1, 2]}),
    "siglip, three scales": (Siglip, {"config": dict(TOWER), "layers": [-2], "scales": [1, 2, 3]}),
    "dinov2": (Dinov2, {"config": DINO, "layers": [-2]}),
    "dinov2, class token, larger": (Dinov2, {"config": DINO, "layers": [-1], "feature": "cls_patch", "image_size": 24}),
    "eva": (Timm, {"config": EVA, "layers": [-2]}),
    "cnn": (Timm, {"config": CNN, "layers": [-1]}),
    "cnn, a middle stage": (Timm, {"config": CNN, "layers": [3]}),
}


def _tower(name):
    kind, arguments = TOWERS[name]
    return kind(**arguments, **HOW)


def _pixels(tower, n=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, tower.image_size, tower.image_size, generator=generator)


@pytest.mark.parametrize("name", TOWERS)
def test_sizes_are_what_comes_out(name):
    tower = _tower(name)
    found = tower(_pixels(tower))
    assert {feature.shape[:2] for feature in found} == {(2, tower.n_patches)}
    assert sum(feature.shape[2] for feature in found) == tower.hidden_dim
    sizes = tower.preprocessor["size"] | tower.preprocessor.get("crop_size", {})
    assert set(sizes.values()) == {tower.image_size}


@pytest.mark.parametrize("name", TOWERS)
def test_unused_parameters_are_exactly_those_without_gradient(name):
    tower = _tower(name)
    sum(feature.square().sum() for feature in tower(_pixels(tower))).backward()
    unused = {id(parameter) for parameter in tower.unused()}
    assert unused == {id(parameter) for parameter in tower.parameters() if parameter.grad is None}


def test_dinov2_layers_are_the_hidden_states_of_transformers():
    tower = Dinov2(config=DINO, layers=[0, 1, 2], feature="cls_patch", **HOW)
    pixels = _pixels(tower)
    states = tower.model(pixels, output_hidden_states=True).hidden_states
    for found, expected in zip(tower(pixels), states, strict=True):
        assert torch.equal(found, expected)


def test_eva_leaves_the_last_block_and_the_norm_out():
    """As Bunny does, by hand: embeddings, all blocks but the last, no norm, no class token."""
    tower = Timm(config=EVA, layers=[-2], **HOW)
    pixels = _pixels(tower)
    model = tower.model
    assert len(model.blocks) == EVA["model_args"]["depth"] - 1
    with torch.no_grad():
        tokens = model.patch_embed(pixels)
        tokens, rope = model._pos_embed(tokens)
        tokens = model.norm_pre(tokens) if hasattr(model, "norm_pre") else tokens
        for block in model.blocks:
            tokens = block(tokens, rope=rope)
        assert torch.allclose(tower(pixels)[0], tokens[:, 1:], atol=1e-6)


def test_one_scale_of_two_is_the_plain_tower_seen_alone():
    """Constant pictures: every square shows the same at every scale, so both halves of the channels agree."""
    tower = Siglip(config=dict(TOWER), layers=[-1], scales=[1, 2], **HOW)
    plain = torch.full((1, 3, tower.image_size, tower.image_size), 0.3)
    found = tower(plain)[0]
    alone = tower._encode(plain[..., : tower.native_size, : tower.native_size])[0]
    assert torch.allclose(found[..., : tower.width], alone, atol=1e-5)
    with pytest.raises(ConfigError, match="growing multiples"):
        Siglip(config=dict(TOWER), scales=[2, 1], **HOW)
    with pytest.raises(ConfigError, match="class token has no place"):
        Clip(config=dict(TOWER), feature="cls_patch", scales=[1, 2], **HOW)


def test_batch_norms_keep_their_statistics_while_trained():
    tower = Timm(config=CNN, layers=[2], **HOW).train()
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower(_pixels(tower))
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())


def test_what_timm_cannot_do_is_said():
    with pytest.raises(ConfigError, match="timm has no model 'eva_02'"):
        Timm(config={"architecture": "eva_02"}, **HOW)
    with pytest.raises(ConfigError, match="layer 0 does not exist"):
        Timm(config=EVA, layers=[0], **HOW)
    with pytest.raises(ConfigError, match="maps of different sizes"):
        Timm(config=CNN, layers=[1, 5], **HOW)


CONNECTORS = {
    "mlp.MLP": {"depth": 2},
    "dense.Dense": {"kind": "dci"},
    "spp.SPP": {"version": "v3"},
    "ldp.LDP": {},
    "grouped.Grouped": {"order": "token"},
}


def _model(folder, tower, connector, tiles=None):
    kind, arguments = TOWERS[tower]
    if not (folder / "llm").is_dir():
        pico_llm(folder / "llm")
    layers = {"layers": None} if connector == "dense.Dense" else {}
    named = {"_target_": f"vlmrun.model.connectors.{connector}", "weights": None, **CONNECTORS[connector]}
    return ModelConfig.model_validate(
        {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": str(folder / "llm")},
            "tower": {"_target_": f"{kind.__module__}.{kind.__name__}", **arguments, **layers},
            "connector": named,
            "template": "micro",
            "max_length": 256,
            "image_markers": None,
            "new_tokens": [],
            "tiles": tiles,
        }
    )


PAIRS = [(tower, "mlp.MLP") for tower in TOWERS] + [("clip", connector) for connector in CONNECTORS]


@pytest.mark.parametrize(("tower", "connector"), PAIRS)
def test_a_saved_model_is_the_same_again(tmp_path, tower, connector):
    made = assemble(_model(tmp_path, tower, connector), **HOW, seed=0)
    whole = {part: made.vlm.get_submodule(part).named_parameters() for part in ("tower", "connector")}
    for folder, tensors in ((tmp_path / "frozen", {}), (tmp_path / "trained", whole)):
        native.save(folder, made, template={}, image_aspect="square", tensors=tensors)
        again = load(folder, **HOW)
        pixels = _pixels(made.vlm.tower)
        ids = torch.tensor([[0, 7, *[-200] * made.vlm.image_tokens(None), 9]] * 2)
        assert again.vlm.image_tokens == made.vlm.image_tokens
        assert again.preprocessor == made.preprocessor
        with torch.no_grad():
            logits = [each.vlm(ids, torch.ones_like(ids), pixels).logits for each in (made, again)]
        assert torch.equal(*logits)


def test_a_timm_folder_loads_with_what_is_needed_of_it(tmp_path):
    from safetensors.torch import load_file, save_file

    whole = Timm(config=EVA, layers=[-1], **HOW)
    state = {whole.saved_name(name): value for name, value in whole.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(whole.config_dict()))
    one, two = (Timm(str(tmp_path), layers=[layer], **HOW) for layer in (-1, -2))
    pixels = _pixels(whole)
    assert torch.equal(one(pixels)[0], whole(pixels)[0])
    assert len(two.model.blocks) == len(one.model.blocks) - 1
    found = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(found) if name.startswith("blocks.0."))
    found.pop(name)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 weights are missing, first '{name}'"):
        Timm(str(tmp_path), layers=[-1], **HOW)


def test_layers_are_chosen_by_one_side_only(tmp_path):
    folder = pico_tower(tmp_path / "tower")
    model = _model(tmp_path, "clip", "mlp.MLP")
    null = {**model.tower.arguments, "config": None, "path": str(folder), "layers": None}
    target = type(model.tower).model_validate({"_target_": model.tower.target, **null})
    with pytest.raises(ConfigError, match="MLP asks for none"):
        assemble(model.model_copy(update={"tower": target}), **HOW, seed=0)
    dense = _model(tmp_path, "clip", "dense.Dense")
    with pytest.raises(ConfigError, match="chooses the tower's layers itself"):
        assemble(dense.model_copy(update={"tower": model.tower}), **HOW, seed=0)


TILES = {"grids": [[16, 32], [32, 16], [32, 32]], "merge": "spatial_unpad"}


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_tiles_train_and_come_back(tmp_path, merge):
    import numpy as np
    from PIL import Image

    from vlmrun.data.images.open import ImageTransform

    made = assemble(_model(tmp_path, "clip", "mlp.MLP", TILES | {"merge": merge}), **HOW, seed=0)
    transform = ImageTransform(made.preprocessor, made.model.tiles)
    noise = np.random.default_rng(0).integers(0, 255, (30, 11, 3), dtype=np.uint8)
    cut = [transform.tiles(Image.fromarray(picture), "anyres") for picture in (noise, noise.transpose(1, 0, 2))]
    pixels = torch.cat([torch.from_numpy(tiles) for tiles, _ in cut])
    layouts = [layout for _, layout in cut]
    rows = [[0, *[-200] * made.vlm.image_tokens(layout), 9, 10] for layout in layouts]
    longest = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids < 0, -100)
    vlm = made.vlm.train()
    vlm(ids, mask, pixels, labels, layouts).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in vlm.connector.parameters())
    assert hasattr(vlm.connector, "image_newline") == (merge == "spatial_unpad")
    text = torch.tensor([[0, 5, 6]])
    vlm.zero_grad()
    vlm(text, torch.ones_like(text), None, text).loss.backward()
    assert all(p.grad is not None for p in vlm.connector.parameters()), "in the graph without a picture too"
    native.save(tmp_path / "saved", made, template={}, image_aspect="anyres", tensors={})
    again = load(tmp_path / "saved", **HOW)
    vlm.eval()
    with torch.no_grad():
        assert torch.equal(
            vlm(ids, mask, pixels, None, layouts).logits, again.vlm(ids, mask, pixels, None, layouts).logits
        )
