"""One token of every square of patches: pixel shuffle, Qwen's merger, the mean of a square."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vlmrun.arch import squares as arch
from vlmrun.arch.connectors import side_of
from vlmrun.arch.projectors import MLP
from vlmrun.model.connectors.base import Connector
from vlmrun.model.connectors.mlp import stacked


def squares(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Patches by squares, row by row within a square: [N, P, D] -> [N, T, factor, factor, D]."""
    side = side_of(features.shape[1], "this connector")
    rows = features.unflatten(1, (side // factor, factor, side // factor, factor))  # [N, Y, y, X, x, D]
    found: torch.Tensor = rows.transpose(2, 3).flatten(1, 2)
    return found


class PixelShuffle(Connector):
    """The patches of every square side by side, a norm, and linear layers with exact GELU between them.

    Source:
        transformers 5.23 models/internvl (two layers behind a norm) and models/idefics3, models/smolvlm (one layer
        without norm and bias).
    """

    ARITHMETIC = arch.PixelShuffle
    arithmetic: arch.PixelShuffle

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        factor: int = 2,
        depth: int = 2,
        norm: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(factor=factor, depth=depth, norm=norm, bias=bias)
        wide = vision_dim * factor**2
        self.norm: nn.Module = nn.LayerNorm(wide) if norm else nn.Identity()
        self.layers = stacked(MLP(depth=depth, bias=bias), wide, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Shuffles and projects."""
        self.tokens(layers[0].shape[1])
        found = squares(torch.cat(layers, dim=-1), self.arithmetic.factor)  # [N, T, y, x, Dv]
        projected: torch.Tensor = self.layers(self.norm(found.flatten(2)))  # [N, T, f f Dv] -> [N, T, Dh]
        return projected


class Merger(Connector):
    """A norm of every patch, the patches of every square side by side, and two linear layers.

    Source:
        transformers 5.23 models/qwen2_vl PatchMerger, whose patches come square by square already.
    """

    ARITHMETIC = arch.Merger
    arithmetic: arch.Merger

    def __init__(self, vision_dim: int, llm_dim: int, factor: int = 2) -> None:
        super().__init__(factor=factor)
        wide = vision_dim * factor**2
        self.norm = nn.LayerNorm(vision_dim, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, llm_dim))

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Merges and projects."""
        self.tokens(layers[0].shape[1])
        normed = self.norm(torch.cat(layers, dim=-1))
        projected: torch.Tensor = self.layers(squares(normed, self.arithmetic.factor).flatten(2))
        return projected


class Pooled(Connector):
    """The mean of every square, and linear layers with exact GELU between them.

    Args:
        norm: an RMS norm of the means in front of the layers.

    Source:
        transformers 5.23 models/gemma3 Gemma3MultiModalProjector is factor 4, depth 1, norm, no bias; its norm keeps
        its weight less 1.
    """

    ARITHMETIC = arch.Pooled
    arithmetic: arch.Pooled

    def __init__(
        self, vision_dim: int, llm_dim: int, factor: int = 4, depth: int = 2, norm: bool = False, bias: bool = True
    ) -> None:
        super().__init__(factor=factor, depth=depth, norm=norm, bias=bias)
        self.norm: nn.Module = nn.RMSNorm(vision_dim, eps=1e-6) if norm else nn.Identity()
        self.layers = stacked(MLP(depth=depth, bias=bias), vision_dim, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Averages and projects."""
        self.tokens(layers[0].shape[1])
        means = squares(torch.cat(layers, dim=-1), self.arithmetic.factor).mean(dim=(2, 3))  # [N, T, Dv]
        projected: torch.Tensor = self.layers(self.norm(means))
        return projected


class Abstractor(Connector):
    """C-Abstractor: residual convolutions, an average to a map of any size, residual convolutions, two linear layers.

    Source:
        Cha et al., Honeybee, arXiv 2312.06742; khanrc/honeybee honeybee/projectors.py, whose blocks are timm's
        RegNet bottlenecks with layer norms and SiLU.
    """

    ARITHMETIC = arch.Abstractor
    arithmetic: arch.Abstractor

    def __init__(self, vision_dim: int, llm_dim: int, n_tokens: int = 144, hidden: int = 1024, depth: int = 3) -> None:
        super().__init__(n_tokens=n_tokens, hidden=hidden, depth=depth)
        self.before = nn.Sequential(*(_Bottleneck(hidden if i else vision_dim, hidden) for i in range(depth)))
        self.after = nn.Sequential(*(_Bottleneck(hidden, hidden) for _ in range(depth)))
        self.readout = nn.Sequential(nn.Linear(hidden, llm_dim), nn.SiLU(), nn.Linear(llm_dim, llm_dim))

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Mixes neighbors and projects."""
        features = torch.cat(layers, dim=-1)
        side = side_of(features.shape[1], "the C-Abstractor")
        map_ = self.before(features.transpose(1, 2).unflatten(2, (side, side)))  # [N, H, side, side]
        small = self.after(F.adaptive_avg_pool2d(map_, self.arithmetic.side))
        projected: torch.Tensor = self.readout(small.flatten(2).transpose(1, 2))  # [N, T, Dh]
        return projected


class _Norm(nn.LayerNorm):
    """Layer norm over the channels of a map, and SiLU."""

    def __init__(self, width: int, *, active: bool = True) -> None:
        super().__init__(width)
        self.active = active

    def forward(self, map_: torch.Tensor) -> torch.Tensor:
        found = super().forward(map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.silu(found) if self.active else found


class _Bottleneck(nn.Module):
    """RegNet's block: 1 x 1, 3 x 3 of each channel, squeeze-and-excitation, 1 x 1; SiLU behind the sum."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 1, bias=False), _Norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), _Norm(width)
        squeezed = max(1, round(before * 0.25))
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.conv3, self.norm3 = nn.Conv2d(width, width, 1, bias=False), _Norm(width, active=False)
        self.short: nn.Module = nn.Identity()
        if before != width:
            self.short = nn.Sequential(nn.Conv2d(before, width, 1, bias=False), _Norm(width, active=False))

    def forward(self, map_: torch.Tensor) -> torch.Tensor:
        found = self.norm2(self.conv2(self.norm1(self.conv1(map_))))
        weights = self.excite(F.silu(self.squeeze(found.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return F.silu(self.norm3(self.conv3(found * weights)) + self.short(map_))
