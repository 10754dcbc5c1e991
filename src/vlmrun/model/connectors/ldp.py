"""MobileVLM's lightweight downsample projector, as Bunny has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vlmrun.arch import projectors as arch
from vlmrun.arch.connectors import side_of
from vlmrun.model.connectors.base import Connector


class LDP(Connector):
    """Two linear layers, then two depthwise convolutions with squeeze-and-excitation, the second of stride 2.

    Source:
        BAAI-DCAI/Bunny@08273ac bunny/model/multimodal_projector/builder.py; Chu et al., MobileVLM, arXiv 2312.16886.
        State keys are the original's (`model.mlp.1`, `model.mb_block.1.block.0.0`, ...), hence the places that an
        identity takes.
    """

    ARITHMETIC = arch.LDP

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Identity(), nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
        blocks = nn.Sequential(nn.Identity(), _Block(llm_dim, 1), _Block(llm_dim, 2))
        self.model = nn.ModuleDict({"mlp": mlp, "mb_block": blocks})

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Projects each patch, then mixes and quarters the map."""
        rows = self.model["mlp"](torch.cat(layers, dim=-1))  # [N, P, Dv] -> [N, P, Dh]
        side = side_of(rows.shape[1], "ldp")
        map_ = rows.transpose(1, 2).unflatten(2, (side, side))  # [N, Dh, side, side]
        small = self.model["mb_block"](map_)  # [N, Dh, ceil(side / 2), ceil(side / 2)]
        return small.flatten(2).transpose(1, 2)  # [N, T, Dh]


class _Block(nn.Module):
    """Depthwise convolution, squeeze-and-excitation, projection; a residual where the size stays."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(width), nn.Hardswish()),
            _Excitation(width),
            nn.Sequential(pointwise, _ChannelNorm(width)),
        )
        self.is_residual = stride == 1

    def forward(self, map_: torch.Tensor) -> torch.Tensor:
        found = self.block(map_)
        return found + map_ if self.is_residual else found


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, map_: torch.Tensor) -> torch.Tensor:
        return super().forward(map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [N, D, Y, X] -> [N, Y, X, D] and back


class _Excitation(nn.Module):
    """Scales every channel by what the whole map says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = arch.LDP.squeezed(width)
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, map_: torch.Tensor) -> torch.Tensor:
        mean = map_.mean(dim=(2, 3), keepdim=True)  # [N, D, 1, 1]
        return map_ * F.hardsigmoid(self.fc2(F.relu(self.fc1(mean))))
