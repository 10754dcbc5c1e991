"""Connectors against recordings of the original classes (golden g4_connectors)."""

import re

import pytest
import torch

from tests.parity.golden import cases, tensors
from vlmrun.arch.connectors import arithmetic
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError
from vlmrun.model.connectors.dense import Dense
from vlmrun.model.connectors.grouped import Grouped
from vlmrun.model.connectors.identity import Identity
from vlmrun.model.connectors.ldp import LDP
from vlmrun.model.connectors.mlp import MLP
from vlmrun.model.connectors.spp import SPP
from vlmrun.model.projector_file import fill
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.siglip import Siglip

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # fp32, other order of the same sums
KINDS = {
    "linear": (MLP, {"depth": 1}),
    "identity": (Identity, {}),
    "ldp": (LDP, {}),
    "vanilla": (Grouped, {"order": "channel"}),
    "minigpt": (Grouped, {"order": "token"}),
    **{f"spp{version}": (SPP, {"version": version}) for version in ("v1", "v2", "v3")},
}


def _kind(name):
    if name in KINDS:
        return KINDS[name]
    depth = re.fullmatch(r"mlp(\d+)x_gelu", name)
    return (MLP, {"depth": int(depth[1])}) if depth else None


def _under(recorded, prefix):
    return {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}


def _saved(weights, folder, prefix="model.mm_projector."):
    """As the original trainer writes it."""
    torch.save({prefix + name: value for name, value in weights.items()}, folder / "mm_projector.bin")
    return str(folder / "mm_projector.bin")


@pytest.mark.parametrize("project", ["llava", "bunny"])
def test_projectors(project, tmp_path):
    recorded = tensors(f"g4_connectors/projectors_{project}.safetensors")
    seen = set()
    for case in cases(f"g4_connectors/projectors_{project}.json"):
        found = _kind(case["type"])
        if case["result"] != "ok":
            assert found is None, f"{case['id']}: upstream refuses what is built here"
            continue
        kind, arguments = found
        connector = kind(case["mm_hidden_size"], case["hidden_size"], **arguments)
        weights = _under(recorded, f"{case['id']}/weights/")
        if weights:
            fill(connector, _saved(weights, tmp_path))
        given, expected = recorded[f"{case['id']}/input"], recorded[f"{case['id']}/output"]
        assert torch.allclose(connector([given]), expected, **TOLERANCE), case["id"]
        assert connector.tokens(given.shape[1]) == expected.shape[1], case["id"]
        target = Target.model_validate({"_target_": f"{kind.__module__}.{kind.__name__}", **arguments})
        assert arithmetic(target).tokens(given.shape[1]) == expected.shape[1], "the check knows as much"
        seen.add(case["type"])
    assert seen


def _tower(name, recorded, config):
    kind = {"clip": Clip, "siglip": Siglip}[name]
    tower = kind(config=config | {"vision_use_head": False}, layers=None, dtype=torch.float32, attention="eager")
    state = {key.removeprefix("vision_model."): value for key, value in _under(recorded, f"{name}/tower/").items()}
    missing, unexpected = tower.model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith(f"encoder.layers.{config['num_hidden_layers'] - 1}.") for key in missing), "never run"
    return tower


def _config(name):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
             "patch_size", "hidden_act", "layer_norm_eps")  # fmt: skip
    config = cases("g4_connectors/dense_connector.json")[f"{name}_config"]
    return {key: config[key] for key in names if key in config}


def test_dense_connectors(tmp_path):
    recorded = tensors("g4_connectors/dense_connector.safetensors")
    compared = 0
    for case in cases("g4_connectors/dense_connector.json")["cases"]:
        depth = _kind(case["projector"])[1]["depth"]
        tower = _tower(case["tower"], recorded, _config(case["tower"]))
        if case["connector"] == "none":
            tower.choose_layers([-2])
            connector = MLP(tower.hidden_dim, case["hidden_size"], depth)
        else:
            wanted = Dense.wanted_layers(tower.n_layers, kind=case["connector"])
            tower.choose_layers(wanted)
            width = tower.hidden_dim // len(wanted)
            connector = Dense(width, case["hidden_size"], case["connector"], depth)
        weights = _under(recorded, f"{case['id']}/projector/")
        fill(connector, _saved(weights, tmp_path))
        with torch.no_grad():
            layers = tower(recorded[f"{case['tower']}/pixels"])
            found = connector(layers)
        assert torch.allclose(layers[0], recorded[f"{case['tower']}/tower_features"], **TOLERANCE), case["id"]
        expected = recorded[f"{case['id']}/projected"]
        assert torch.allclose(found, expected, **TOLERANCE), case["id"]
        assert connector.tokens(tower.n_patches) == expected.shape[1]
        compared += 1
    assert compared


def test_a_projector_of_another_shape_is_refused_by_name(tmp_path):
    weights = {name: torch.zeros(shape) for name, shape in (("weight", (4, 6)), ("bias", (4,)))}
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight is \[4, 6\], expected \[4, 5\]"):
        fill(MLP(5, 4, 1), _saved(weights, tmp_path))
    with pytest.raises(CheckpointError, match=r"layers\.2\.bias is not there"):
        fill(MLP(6, 4, 2), _saved(weights, tmp_path))
