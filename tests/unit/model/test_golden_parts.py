"""Towers and connectors against recordings of the original classes (golden g4_connectors)."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmrun.model.connectors.mlp import MLP
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.siglip import Siglip

GOLDEN = Path(os.environ.get("VLMRUN_GOLDEN", Path(__file__).resolve().parents[4] / "shared/golden"))
PARTS = GOLDEN / "g4_connectors"
HOW = {"dtype": torch.float32, "attention": "eager"}
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}  # fp32, other order of the same sums


@pytest.fixture(scope="module", autouse=True)
def _golden():
    if not PARTS.is_dir():
        message = f"golden data is missing: {PARTS} (set VLMRUN_GOLDEN)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


@pytest.mark.parametrize("layer", [-2, -1, 1, -4])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_clip_gives_what_llavas_tower_gives(layer, feature):
    recorded = load_file(PARTS / "clip_tower_llava.safetensors")
    folder = GOLDEN / "g6_optim/train_runs/base/clip_tiny"
    tower = Clip(str(folder), layers=[layer], feature=feature, **HOW)
    expected = recorded[f"batch/layer{layer}/{feature}"]
    found = tower(recorded["pixels"])[0]
    assert torch.allclose(found, expected, **TOLERANCE)
    assert tower.n_patches == expected.shape[1]


def test_siglip_gives_what_bunnys_tower_gives(tmp_path):
    """Its folder is of an older transformers, with `vision_model.` before every name."""
    recorded = load_file(PARTS / "siglip_tower_bunny.safetensors")
    weights = {n.removeprefix("weights/"): t for n, t in recorded.items() if n.startswith("weights/")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(PARTS / "siglip_tower_bunny_config.json", tmp_path / "config.json")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    tower = Siglip(str(tmp_path), layers=[-2], **HOW)
    assert torch.allclose(tower(recorded["pixels"])[0], recorded["features"], **TOLERANCE)


def test_mlp_gives_what_llavas_projectors_give():
    recorded = load_file(PARTS / "projectors_llava.safetensors")
    cases = json.loads((PARTS / "projectors_llava.json").read_text())
    seen = set()
    for case in cases:
        kind = re.fullmatch(r"linear|mlp(\d)x_gelu", case["type"])
        if case["result"] != "ok" or kind is None:
            continue
        depth = int(kind[1] or 1)
        connector = MLP(case["mm_hidden_size"], case["hidden_size"], depth)
        prefix = f"{case['id']}/weights/"
        theirs = {n.removeprefix(prefix): t for n, t in recorded.items() if n.startswith(prefix)}
        state = {f"layers.{n}" if n[0].isdigit() else f"layers.0.{n}": t for n, t in theirs.items()}
        connector.load_state_dict(state)
        found = connector([recorded[f"{case['id']}/input"]])
        assert torch.allclose(found, recorded[f"{case['id']}/output"], **TOLERANCE), case["id"]
        seen.add(depth)
    assert seen == {1, 2, 3}
