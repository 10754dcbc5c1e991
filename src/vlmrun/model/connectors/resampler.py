"""Perceiver resamplers: a fixed number of learnt queries look at the patches of a picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from vlmrun.errors import ConfigError
from vlmrun.model.connectors.base import Connector, side_of
from vlmrun.model.towers.base import Grids

_HEAD = 128  # width of a head, unless it is told how many there are


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
    """MiniCPM-V's since 2.5: patches know their place in the picture's grid, which may have any shape.

    Args:
        queries: image tokens of a picture or slice.
        heads: of the attention; None: one for every 128 channels.

    Source:
        openbmb/MiniCPM-Llama3-V-2_5 resampler.py; state keys are the original's.
    """

    ADAPTIVE = True

    def __init__(self, vision_dim: int, llm_dim: int, queries: int = 96, heads: int | None = None) -> None:
        super().__init__()
        heads = heads or max(1, llm_dim // _HEAD)
        if llm_dim % heads or llm_dim % 4 or queries < 1:
            raise ConfigError(
                f"a resampler of {queries} queries and {heads} heads at width {llm_dim}",
                "model.connector",
                "at least one query, heads that divide the LLM's width, a width that 4 divides",
            )
        self.n_queries = queries
        self.query = nn.Parameter(torch.empty(queries, llm_dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.kv_proj: nn.Module = nn.Identity()
        if vision_dim != llm_dim:
            linear = nn.Linear(vision_dim, llm_dim, bias=False)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            self.kv_proj = linear
        self.attn = _Attention(llm_dim, heads)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(llm_dim, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.randn(llm_dim, llm_dim) * llm_dim**-0.5)

    def forward(self, layers: list[torch.Tensor], grids: Grids | None = None) -> torch.Tensor:
        """As many rows for every picture."""
        features = torch.cat(layers, dim=-1)
        n_patches = features.shape[1]
        if grids is None:
            side = side_of(n_patches, "resampler")
            grids = [(side, side)] * len(features)
        found = self.ln_kv(self.kv_proj(features))
        places, real = self._places(grids, found)
        query = self.ln_q(self.query) + self._query_places(found)
        query = query.expand(len(found), -1, -1)
        found = self.attn(query, found + places, found, None if bool(real.all()) else real)
        out: torch.Tensor = self.ln_post(found) @ self.proj
        return out

    def tokens(self, n_patches: int) -> int:
        """The queries, whatever the picture."""
        return self.n_queries

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

    `pos_embed` lies in the original's file and never learns.

    Source:
        OpenBMB/MiniCPM-V@247a576 omnilmm/model/resampler.py
    """

    def __init__(self, vision_dim: int, llm_dim: int, queries: int = 64, heads: int | None = None) -> None:
        super().__init__(vision_dim, llm_dim, queries, heads)
        side = side_of(queries, "a resampler of this kind")
        self.pos_embed: torch.Tensor
        self.register_buffer("pos_embed", sincos(side, side, llm_dim))

    def _table(self, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        side = math.isqrt(self.n_queries)
        square = self.pos_embed.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
        if (rows, columns) == (side, side):
            return self.pos_embed
        stretched = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return stretched[0].permute(1, 2, 0).flatten(0, 1)

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
