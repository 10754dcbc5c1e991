"""MiniCPM-V's resamplers, tower positions and loss against recordings and what transformers computes."""

import pytest
import torch

from tests.parity import golden
from vlmrun.model.connectors.resampler import FixedResampler, Resampler, sincos
from vlmrun.model.loss import token_losses
from vlmrun.model.towers.siglip_navit import SiglipNavit, grid_positions, strip_positions

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # fp32, other order of the same sums
SET = "g5_minicpmv"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}


def _filled(kind, case, recorded):
    heads, width = case["num_heads"], case["embed_dim"]
    resampler = kind(case["kv_dim"], width, _queries(case), heads)
    prefix = f"{case['id']}/weights/"
    state = {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}
    resampler.load_state_dict(state)
    return resampler


def _queries(case):
    return case["num_queries"] if "num_queries" in case else case["grid_size"] ** 2


def test_the_resampler_of_25():
    recorded = golden.tensors(f"{SET}/resampler_v25.safetensors")
    table = next(value for name, value in recorded.items() if name.startswith("pos_embed_table"))
    rows, columns, width = table.shape
    assert torch.allclose(sincos(rows, columns, width).view_as(table), table, **TOLERANCE)
    cases = golden.cases(f"{SET}/resampler_v25.json")
    for case in cases:
        grids = [tuple(size) for size in recorded[f"{case['id']}/tgt_sizes"].tolist()]
        resampler = _filled(Resampler, case, recorded)
        found = resampler([recorded[f"{case['id']}/x"]], grids)
        assert torch.allclose(found, recorded[f"{case['id']}/output"], **TOLERANCE), case["id"]
        assert resampler.tokens(1) == found.shape[1]
    assert cases


def test_the_resampler_of_20():
    recorded = golden.tensors(f"{SET}/resampler_fixed_grid.safetensors")
    cases = golden.cases(f"{SET}/resampler_fixed_grid.json")
    for case in cases:
        found = _filled(FixedResampler, case, recorded)([recorded[f"{case['id']}/x"]])
        assert torch.allclose(found, recorded[f"{case['id']}/output"], **TOLERANCE), case["id"]
    assert cases


def test_the_loss():
    recorded = golden.tensors(f"{SET}/loss.safetensors")
    names = {name.partition("/")[0] for name in recorded}
    for name in names:
        logits, moved = recorded[f"{name}/logits"], recorded[f"{name}/labels"].long()
        # Upstream moves its labels when it makes them, vlmrun when it takes the loss.
        labels = torch.cat([torch.full_like(moved[:, :1], -100), moved], dim=1)
        logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
        assert torch.allclose(token_losses(logits, labels).mean(), recorded[f"{name}/loss"], **TOLERANCE), name
    assert names


@pytest.mark.parametrize(("length", "n_different"), [(1024, 0), (1020, 0), (1015, 0), (1036, 4), (700, 13)])
def test_strip_positions_fall_as_in_transformers_4_40(length, n_different):
    """What was counted with that version against whole numbers (specification, A6)."""
    whole = torch.arange(length) * 70 // length
    assert int((strip_positions(length, 70) != whole).sum()) == n_different


@pytest.fixture(scope="module")
def tower():
    return _tower()


def _tower(**options):
    torch.manual_seed(0)
    made = SiglipNavit(config=SMALL, image_size=32, dtype=torch.float32, attention="sdpa", **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def _strip(picture):
    patches = picture.unfold(1, 8, 8).unfold(2, 8, 8)  # [3, rows, columns, 8, 8]
    return patches.permute(0, 3, 1, 2, 4).flatten(2).unsqueeze(0)


def test_features_are_those_of_idefics2(tower):
    """Its tower is the one the original runs; squares, where both versions of transformers place patches alike."""
    from transformers import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

    reference = Idefics2VisionTransformer(Idefics2VisionConfig(**SMALL)).eval()
    reference.load_state_dict(tower.model.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference(pixels).last_hidden_state
        (alone,) = tower(pixels)
        (as_strips,) = tower(torch.cat([_strip(picture) for picture in pixels]), [(4, 4), (4, 4)])
    assert torch.allclose(alone, expected, **TOLERANCE)
    assert torch.allclose(as_strips, expected, **TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_picture_does_not_depend_on_the_one_beside_it(attention):
    tower = _tower()
    tower.model.config._attn_implementation = attention
    wide, small = _strip(torch.randn(3, 16, 40)), _strip(torch.randn(3, 24, 8))
    both = torch.cat([wide, torch.nn.functional.pad(small, (0, wide.shape[-1] - small.shape[-1]))])
    with torch.no_grad():
        (together,) = tower(both, [(2, 5), (3, 1)])
        (alone,) = tower(small, [(3, 1)])
    assert torch.allclose(together[1, :3], alone[0], **TOLERANCE)


@pytest.mark.parametrize("quirk", [{"positions": "strip"}, {"sees_padding": True}])
def test_with_either_quirk_of_25_it_does(quirk):
    tower = _tower(**quirk)
    small = _strip(torch.randn(3, 24, 8))
    with torch.no_grad():
        (wider,) = tower(torch.nn.functional.pad(small, (0, 16)), [(3, 1)])
        (alone,) = tower(small, [(3, 1)])
    assert not torch.allclose(wider[0, :3], alone[0], atol=1e-2)


def test_grid_positions_are_rows_and_columns():
    assert grid_positions(2, 2, 4).tolist() == [0, 2, 8, 10]
    assert grid_positions(1, 4, 4).tolist() == [0, 1, 2, 3]
