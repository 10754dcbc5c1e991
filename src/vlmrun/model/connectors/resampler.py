"""Perceiver resamplers: a fixed number of trained queries look at the patches of an image."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vlmrun.arch import projectors as arch
from vlmrun.arch.connectors import side_of
from vlmrun.model.connectors.base import Connector
from vlmrun.model.towers.base import Grids


class _Attention(nn.Module):
    """Attention of [N, Q, D] to [N, P, D], with the parameters of torch's own MultiheadAttention.

    That one reads the weights of its output projection without calling it, which ZeRO-3 does not notice.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, real: torch.Tensor | None
    ) -> torch.Tensor:
        """Args: real: which of the P places are no padding, [N, P]; None: all."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x, w, b in given)
        mask = None if real is None else real[:, None, None]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: torch.Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return out


class Resampler(Connector):
    """MiniCPM-V's since 2.5: patches know their place in the image's grid, which may have any shape.

    Args:
        queries: image tokens of an image or slice.
        heads: of the attention; None: one for every 128 channels.

    Source:
        openbmb/MiniCPM-Llama3-V-2_5 resampler.py; state keys are the original's.
    """

    ARITHMETIC: ClassVar[type[arch.Resampler]] = arch.Resampler
    arithmetic: arch.Resampler

    def __init__(self, vision_dim: int, llm_dim: int, queries: int = 96, heads: int | None = None) -> None:
        super().__init__(queries=queries, heads=heads)
        self.arithmetic.check_widths(vision_dim, llm_dim)
        self.query = nn.Parameter(torch.empty(queries, llm_dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.kv_proj: nn.Module = nn.Identity()
        if vision_dim != llm_dim:
            linear = nn.Linear(vision_dim, llm_dim, bias=False)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            self.kv_proj = linear
        self.attn = _Attention(llm_dim, self.arithmetic.n_heads(llm_dim))
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(llm_dim, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.randn(llm_dim, llm_dim) * llm_dim**-0.5)

    def forward(self, layers: list[torch.Tensor], grids: Grids | None = None) -> torch.Tensor:
        """As many rows for every image."""
        features = torch.cat(layers, dim=-1)  # [N, P, Dv]
        n_patches = features.shape[1]
        if grids is None:
            side = side_of(n_patches, "resampler")
            grids = [(side, side)] * len(features)
        values = self.ln_kv(self.kv_proj(features))  # [N, P, Dh]
        places, real = self._places(grids, values)  # [N, P, Dh], [N, P]
        query = self.ln_q(self.query) + self._query_places(values)  # [Q, Dh]
        query = query.expand(len(values), -1, -1)  # [N, Q, Dh]
        # Without padding no mask at all: sdpa has faster kernels without one.
        seen = self.attn(query, values + places, values, None if bool(real.all()) else real)  # [N, Q, Dh]
        rows: torch.Tensor = self.ln_post(seen) @ self.proj  # [N, Q, Dh]
        return rows

    def _places(self, grids: Grids, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What tells every patch's place, zero on padding, [N, P, D]; and which places are patches, [N, P]."""
        places = torch.zeros_like(like)
        real = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
        for picture, (rows, columns) in enumerate(grids):
            n = rows * columns
            places[picture, :n] = self._table(rows, columns, like).to(like)
            real[picture, :n] = True
        return places, real

    def _table(self, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        return sincos(rows, columns, like.shape[-1])

    def _query_places(self, like: torch.Tensor) -> torch.Tensor | float:
        """What tells a query its own place: here it has none."""
        return 0.0


class FixedResampler(Resampler):
    """That of MiniCPM-V 2.0 and OmniLMM: queries lie in a square, whose positions are stretched over the patches.

    `pos_embed` is in the original's file and never learns.

    Source:
        OpenBMB/MiniCPM-V@247a576 omnilmm/model/resampler.py
    """

    ARITHMETIC: ClassVar[type[arch.Resampler]] = arch.FixedResampler
    arithmetic: arch.FixedResampler

    def __init__(self, vision_dim: int, llm_dim: int, queries: int = 64, heads: int | None = None) -> None:
        super().__init__(vision_dim, llm_dim, queries, heads)
        side = self.arithmetic.side
        self.pos_embed: torch.Tensor
        self.register_buffer("pos_embed", sincos(side, side, llm_dim))

    def _table(self, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        side = self.arithmetic.side
        square = self.pos_embed.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, Dh, side, side]
        if (rows, columns) == (side, side):
            return self.pos_embed
        stretched = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return stretched[0].permute(1, 2, 0).flatten(0, 1)  # [rows * columns, Dh]

    def _query_places(self, like: torch.Tensor) -> torch.Tensor | float:
        return self.pos_embed.to(like)


def sincos(rows: int, columns: int, dim: int) -> torch.Tensor:
    """Sines and cosines of the column in the first half of the channels, of the row in the second, [rows * columns, D].

    Source: as in MAE (facebookresearch/mae util/pos_embed.py)
    """
    along = _sincos(columns, dim // 2)[None].expand(rows, -1, -1)
    down = _sincos(rows, dim // 2)[:, None].expand(-1, columns, -1)
    return torch.cat([along, down], dim=-1).flatten(0, 1)


def _sincos(n: int, dim: int) -> torch.Tensor:
    # In fp64 until the end: the original computes with numpy, and rounds once.
    rates = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.arange(n, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
