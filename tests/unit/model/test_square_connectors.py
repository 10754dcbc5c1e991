"""Connectors that make one token of a square of patches, equal to the classes they follow; and anyres-max."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from vlmrun.arch import squares as arch
from vlmrun.config.schema import Tiles
from vlmrun.data.images.transform import ImageLayout
from vlmrun.errors import ConfigError
from vlmrun.model.connectors.squares import Abstractor, Merger, PixelShuffle, Pooled
from vlmrun.model.tiles import tiling
from vlmrun.model.towers.without_torchvision import stand_in

FEATURES = torch.randn(2, 36, 8, generator=torch.Generator().manual_seed(0))
VISION = SimpleNamespace(hidden_size=8, image_size=24, patch_size=4, layer_norm_eps=1e-6)
TEXT = SimpleNamespace(hidden_size=12)


def _equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def _copied(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                mine.copy_(other)


def test_pixel_shuffle_is_internvls():
    from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

    config = SimpleNamespace(vision_config=VISION, text_config=TEXT, downsample_ratio=0.5, projector_hidden_act="gelu")
    theirs = InternVLMultiModalProjector(config)
    ours = PixelShuffle(8, 12)
    _copied([(ours.norm, theirs.layer_norm), (ours.layers[0], theirs.linear_1), (ours.layers[2], theirs.linear_2)])
    # As InternVLModel.get_image_features does it.
    shuffled = InternVLModel.pixel_shuffle(None, FEATURES.reshape(2, 6, 6, 8), scale_factor=0.5)
    _equal(ours([FEATURES]), theirs(shuffled.reshape(2, -1, 32)))


def test_pixel_shuffle_is_idefics():
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    theirs = Idefics3Connector(SimpleNamespace(scale_factor=3, vision_config=VISION, text_config=TEXT))
    ours = PixelShuffle(8, 12, factor=3, depth=1, norm=False, bias=False)
    _copied([(ours.layers, theirs.modality_projection)])
    _equal(ours([FEATURES]), theirs(FEATURES))


def test_the_merger_is_qwen2_vls():
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

    theirs, ours = PatchMerger(12, 8), Merger(8, 12)
    _copied([(ours.norm, theirs.ln_q), (ours.layers, theirs.mlp)])
    # Its patches come square by square.
    rows = FEATURES.view(2, 3, 2, 3, 2, 8).transpose(2, 3).reshape(2, 36, 8)
    _equal(ours([FEATURES]), theirs(rows).view(2, 9, 12))


def test_means_are_gemma_3s():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    config = SimpleNamespace(vision_config=VISION, text_config=TEXT, mm_tokens_per_image=4)
    theirs = Gemma3MultiModalProjector(config)
    torch.nn.init.normal_(theirs.mm_input_projection_weight)
    torch.nn.init.normal_(theirs.mm_soft_emb_norm.weight)
    ours = Pooled(8, 12, factor=3, depth=1, norm=True, bias=False)
    with torch.no_grad():
        ours.norm.weight.copy_(theirs.mm_soft_emb_norm.weight + 1)
        ours.layers[0].weight.copy_(theirs.mm_input_projection_weight.T)
    _equal(ours([FEATURES]), theirs(FEATURES))


def test_the_abstractors_blocks_are_regnets():
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with stand_in():
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        ours = Abstractor(8, 12, n_tokens=9, hidden=16, depth=2)
        stage = RegStage(2, 8, 16, stride=1, dilation=1, act_layer=torch.nn.SiLU, norm_layer=LayerNorm2d)
    for mine, theirs in zip(ours.before, stage.children(), strict=True):
        pairs = [(mine.conv1, theirs.conv1.conv), (mine.norm1, theirs.conv1.bn), (mine.conv2, theirs.conv2.conv),
                 (mine.norm2, theirs.conv2.bn), (mine.squeeze, theirs.se.fc1), (mine.excite, theirs.se.fc2),
                 (mine.conv3, theirs.conv3.conv), (mine.norm3, theirs.conv3.bn)]  # fmt: skip
        if not isinstance(mine.short, torch.nn.Identity):
            pairs += [(mine.short[0], theirs.downsample.conv), (mine.short[1], theirs.downsample.bn)]
        for pair in pairs:
            _copied([pair])
    map_ = FEATURES.transpose(1, 2).unflatten(2, (6, 6))
    _equal(ours.before(map_), stage(map_))
    assert ours([FEATURES]).shape == (2, 9, 12)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PixelShuffle, {}),
        (PixelShuffle, {"depth": 1, "norm": False}),
        (Merger, {"factor": 3}),
        (Pooled, {"norm": True}),
    ],
)
def test_the_plan_counts_their_parameters_and_tokens(kind, arguments):
    patches = torch.randn(1, 144, 8)
    ours = kind(8, 12, **arguments)
    found = ours.arithmetic.sizes(8, 12, 144)
    assert found.n_parameters == sum(p.numel() for p in ours.parameters())
    assert found.tokens == ours.tokens(144) == ours([patches]).shape[1]


def test_maps_that_squares_do_not_cover_are_refused_with_the_squares_that_do():
    with pytest.raises(ConfigError, match=r"(?s)27 x 27 patches is not made of squares of 2.*factor: 3 or 9 or 27"):
        arch.PixelShuffle().tokens(729)
    with pytest.raises(ConfigError, match="needs a square map"):
        arch.Abstractor(n_tokens=10)
    with pytest.raises(ConfigError, match="depth 0"):
        arch.Abstractor(depth=0)
    with pytest.raises(ConfigError, match="convolutions of 0 channels"):
        arch.Abstractor(hidden=0)


@pytest.mark.parametrize("size", [(48, 24), (24, 48), (100, 90), (300, 10), (50, 50)])
@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_anyres_max_is_llava_onevisions(size, most):
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    grids = [[24, 48], [48, 24], [48, 48]]
    width, height = size
    grid = {(48, 24): (2, 1), (24, 48): (1, 2), (100, 90): (2, 2), (300, 10): (2, 1), (50, 50): (2, 2)}[size]
    rule = tiling(36, Tiles(grids=grids, merge="spatial_unpad", max_tiles=most))
    features = torch.randn(1 + grid[0] * grid[1], 36, 8, generator=torch.Generator().manual_seed(1))
    newline, layout = torch.randn(8), ImageLayout(grid, size)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=VISION, image_grid_pinpoints=[g[::-1] for g in grids]))
    packed, lengths = LlavaOnevisionModel.pack_image_features(
        model, [features], [torch.tensor([height, width])], newline, f"anyres_max_{most}"
    )
    assert rule(layout) == int(lengths[0])
    _equal(rule.merged(features, [layout], newline), packed[0])
