"""Linear layers around a 2 x 2 mean of the map of patches: Bunny's `sppv1` to `sppv3`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vlmrun.arch import projectors as arch
from vlmrun.arch.connectors import side_of
from vlmrun.model.connectors.base import Connector


class SPP(Connector):
    """Quarters the patches by averaging; without any activation.

    Source:
        BAAI-DCAI/Bunny@08273ac bunny/model/multimodal_projector/builder.py. A layer that the version does not use is
        kept, so that files fit both ways, but as a buffer: it is never trained.
    """

    ARITHMETIC = arch.SPP

    def __init__(self, vision_dim: int, llm_dim: int, version: Literal["v1", "v2", "v3"]) -> None:
        super().__init__(version=version)
        self.steps = arch.SPP.STEPS[version]
        for number, (width_in, width_out) in enumerate(arch.SPP.widths(vision_dim, llm_dim)):
            layer: nn.Module = nn.Linear(width_in, width_out)
            self.add_module(f"linear_{number}", layer if number in self.steps else _kept(layer))

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Projects and averages in the version's order."""
        value = torch.cat(layers, dim=-1)  # [N, P, Dv]
        for step in self.steps:
            value = _pooled(value) if step == "pool" else self.get_submodule(f"linear_{step}")(value)
        return value  # [N, P // 4, Dh]


def _pooled(value: torch.Tensor) -> torch.Tensor:
    """[N, P, D] -> [N, P // 4, D]."""
    side = side_of(value.shape[1], "spp")
    map_ = value.transpose(1, 2).unflatten(2, (side, side))  # [N, D, side, side]
    return F.avg_pool2d(map_, 2).flatten(2).transpose(1, 2)


def _kept(layer: nn.Module) -> nn.Module:
    """Its weights under the same names, as buffers."""
    holder = nn.Module()
    for name, value in layer.named_parameters():
        holder.register_buffer(name, value.detach())
    return holder
