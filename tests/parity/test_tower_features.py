"""Vision towers against recordings of the original classes (golden g4_connectors)."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.golden import CASES, asset, cases, tensors
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.siglip import Siglip

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # fp32, other order of the same sums
HOW = {"dtype": torch.float32, "attention": "eager"}
CLIP = "g6_optim/train_runs/base/clip_tiny"  # the folder that the recordings' README names


def test_clip():
    recorded = tensors("g4_connectors/clip_tower_llava.safetensors")
    compared = 0
    for case in cases("g4_connectors/clip_tower_llava.json"):
        tower = Clip(str(asset(CLIP)), layers=[case["select_layer"]], feature=case["select_feature"], **HOW)
        found = tower(recorded["pixels"])[0]
        assert torch.allclose(found, recorded[case["id"]], **TOLERANCE), case["id"]
        assert tower.n_patches == found.shape[1]
        assert tower.hidden_dim == case["hidden_size"]
        compared += 1
    assert compared
    for name, expected in recorded.items():
        if name.startswith("list/"):
            index = int(name.removeprefix("list/"))
            alone = Clip(str(asset(CLIP)), layers=[-2], **HOW)(recorded["pixels"][index : index + 1])[0]
            assert torch.allclose(alone, expected, **TOLERANCE), name


def test_clip_in_half_precision():
    recorded = tensors("g4_connectors/clip_tower_llava.safetensors")
    compared = 0
    for name, expected in recorded.items():
        if not name.startswith("fp16_tower/"):
            continue
        layer, feature = name.removeprefix("fp16_tower/layer").split("/")
        tower = Clip(str(asset(CLIP)), layers=[int(layer)], feature=feature, dtype=torch.float16, attention="eager")
        found = tower(recorded["pixels"].to(tower.dtype))[0].to(expected.dtype)
        exact = Clip(str(asset(CLIP)), layers=[int(layer)], feature=feature, **HOW)(recorded["pixels"])[0]
        # Half precision keeps no order of sums apart: ours may be as far from the exact value as theirs was.
        assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()
        assert (found - exact).abs().mean() <= 1.5 * (expected - exact).abs().mean()
        compared += 1
    assert compared


@pytest.fixture
def siglip(tmp_path):
    """Its folder is of an older transformers, with `vision_model.` before every name."""
    recorded = tensors("g4_connectors/siglip_tower_bunny.safetensors")
    weights = {n.removeprefix("weights/"): t for n, t in recorded.items() if n.startswith("weights/")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(CASES / "g4_connectors/siglip_tower_bunny_config.json", tmp_path / "config.json")
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 1, "width": 1}}')
    return tmp_path


def test_siglip(siglip):
    recorded = tensors("g4_connectors/siglip_tower_bunny.safetensors")
    tower = Siglip(str(siglip), layers=[-2], **HOW)
    assert torch.allclose(tower(recorded["pixels"])[0], recorded["features"], **TOLERANCE)


def test_siglip_at_several_scales(siglip):
    recorded = tensors("g4_connectors/siglip_tower_bunny.safetensors")
    native = recorded["pixels"].shape[-1]
    largest = recorded["s2/pixels"].shape[-1]
    scales = list(range(1, largest // native + 1))
    tower = Siglip(str(siglip), layers=[-2], scales=scales, **HOW)
    found = tower(recorded["s2/pixels"])[0]
    assert torch.allclose(found, recorded["s2/features"], **TOLERANCE)
    assert found.shape[1:] == (tower.n_patches, tower.hidden_dim)
    assert tower.image_size == largest
    assert tower.preprocessor["size"] == {"height": largest, "width": largest}
