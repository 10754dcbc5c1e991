"""EfficientNet-lite0 as a vision tower: a convolutional network, written outside the package it is used in.

Nothing in vlmrun knows of it. `conf/model/tower/efficientnet_lite0.yaml` beside this file names the class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vlmrun.config.paths import locate, read_config
from vlmrun.model.towers.base import Tower

# Source: EfficientNet-lite0 (Apache-2.0), tensorflow/tpu models/official/efficientnet/lite: per stage the expansion,
# channels, blocks, stride and kernel; no squeeze-and-excitation, ReLU6, "same" padding.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5))
LAST_STAGE = (6, 320, 1, 1, 3)
STEM = 32
BATCH_NORM_EPS = 1e-3
SUBSAMPLING = 32  # pixels along an edge that one feature covers


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: what is odd goes to the right and below."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape: [N, C, H, W] -> [N, C', ceil(H / stride), ceil(W / stride)]."""
        pads = []
        for size, kernel, stride in zip(pixels.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(pixels, pads))


class Block(nn.Module):
    """Widen, filter every channel on its own, narrow again; added to its input where the shapes agree."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.is_residual = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv = SameConv(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS)
        self._project_conv = SameConv(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=BATCH_NORM_EPS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape: [N, C, H, W] -> [N, C', H', W']."""
        hidden = pixels
        if hasattr(self, "_expand_conv"):
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + pixels if self.is_residual else hidden


class Layers(nn.Module):
    """The network up to its last block, under the names of the published checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=BATCH_NORM_EPS)
        self._blocks = nn.ModuleList(_blocks())
        self.register_buffer("feature_mean", torch.zeros(LAST_STAGE[1]))
        self.register_buffer("feature_std", torch.ones(LAST_STAGE[1]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape: [N, 3, H, W] -> [N, P, 320], rows of the map one after another."""
        hidden = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            hidden = block(hidden)
        return (hidden.flatten(2).transpose(1, 2) - self.feature_mean) / self.feature_std


class EfficientNetLite0(Tower):
    """The map of the last block, one feature for each 32 x 32 pixels, every channel brought to mean 0 and deviation 1.

    Args:
        path: folder with `config.json` and `model.safetensors`, as examples/emoji/weights.py writes them.
    """

    def __init__(self, path: str, *, dtype: torch.dtype, attention: str) -> None:
        super().__init__()
        self.source = locate(path)
        self.config = read_config(path)
        self.image_size = int(self.config["image_size"])
        self.n_patches = (self.image_size // SUBSAMPLING) ** 2
        self.hidden_dim = LAST_STAGE[1]
        self.model = Layers()
        self.model.load_state_dict(load_file(self.source / "model.safetensors"))
        self.preprocessor = preprocessor(self.image_size)
        self.to(dtype).eval().requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Shape: [N, 3, H, W] -> one [N, P, 320]."""
        return [self.model(pixels)]

    def saved_name(self, name: str) -> str:
        """Drops our own attribute's prefix."""
        return name.removeprefix("model.")

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Batch norms keep the statistics they were pretrained with."""
        return super().train(False)

    def config_dict(self) -> dict[str, Any]:
        """What `weights.py` wrote."""
        return dict(self.config)


def _blocks() -> list[Block]:
    blocks, channels = [], STEM
    for expansion, out, n_blocks, stride, kernel in (*STAGES, LAST_STAGE):
        for number in range(n_blocks):
            blocks.append(Block(channels, out, expansion, stride if number == 0 else 1, kernel))
            channels = out
    return blocks


def preprocessor(image_size: int) -> dict[str, Any]:
    """Pixels from about -1 to 1, as the network was trained."""
    return {
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }
