"""Features of the tiles of one image put together again.

Source:
    haotian-liu/LLaVA@c121f043 llava/model/llava_arch.py and llava/mm_utils.py (LLaVA 1.6 inference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vlmrun.arch.tiles import Counting, Layout, merge_of, n_tiles
from vlmrun.config.schema import Slices, Tiles
from vlmrun.errors import DataError

NEWLINE = "image_newline"  # name, in the connector's state, of the feature that ends each row of an image


@dataclass(frozen=True)
class Tiling(Counting):
    """How many positions an image takes, and how its features are laid out there."""

    def merged(
        self, features: torch.Tensor, layouts: Sequence[Layout | None], newline: torch.Tensor | None
    ) -> torch.Tensor:
        """All rows of all images, one after another.

        Shape:
            features [S, T, D], every tile of every image in order; newline [D]; result [rows, D]
        """
        counts = [n_tiles(layout) for layout in layouts]
        if sum(counts) != len(features):
            raise DataError(
                f"{len(features)} tiles are given, the layouts of {len(layouts)} images say {sum(counts)}",
                "a batch",
                "give all tiles of every image, the thumbnail first",
            )
        parts = features.split(counts)  # of each image [tiles, T, D]
        rows = [self._of_picture(part, layout, newline) for part, layout in zip(parts, layouts, strict=True)]
        return torch.cat(rows) if rows else features.flatten(0, 1)  # [rows, D]

    def _of_picture(self, part: torch.Tensor, layout: Layout | None, newline: torch.Tensor | None) -> torch.Tensor:
        """[tiles, T, D] -> [rows, D], the thumbnail's first."""
        if layout is None:
            return part.flatten(0, 1)  # one tile: [T, D]
        if layout.grid is None:
            return _ended(part[0].unsqueeze(0), newline).flatten(0, 1) if self.merge == "spatial_unpad" else part[0]
        if self.merge == "flat":
            return part.flatten(0, 1)  # [tiles T, D]
        columns, rows = layout.grid
        side = self.side
        tiles = part[1:].unflatten(1, (side, side)).unflatten(0, (rows, columns))  # [rows, columns, y, x, D]
        # A line of the map crosses a row of tiles: [rows, y, columns, x, D] -> [Y, X, D], Y = rows y, X = columns x.
        whole = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        if self.merge == "spatial_unpad":
            top, bottom, left, right = self.kept(layout)
            whole = _ended(_resized(whole[top:bottom, left:right], self.shown(layout)), newline)  # [Y, X + 1, D]
        return torch.cat([part[0], whole.flatten(0, 1)])  # [T + Y X, D], with a newline [T + Y (X + 1), D]


def tiling(per_tile: int, tiles: Tiles | Slices | None) -> Tiling:
    """The rule of a model.

    Raises:
        ConfigError: when the features of a tile form no square map and the tiles are to be joined as maps.
    """
    return Tiling(per_tile, merge_of(per_tile, tiles), tiles.max_tiles if isinstance(tiles, Tiles) else None)


def grids_of(layouts: Sequence[Layout | None]) -> list[tuple[int, int]] | None:
    """Rows and columns of patches of every tile of every image; None when all have the tower's own shape."""
    found = [patches for layout in layouts if layout is not None for patches in layout.patches]
    return found or None


def add_newline(connector: nn.Module, tiles: Tiles | Slices | None, llm_dim: int) -> None:
    """Gives the connector the feature that ends a row, where the way of merging has one."""
    if isinstance(tiles, Tiles) and tiles.merge == "spatial_unpad":
        connector.register_parameter(NEWLINE, nn.Parameter(torch.randn(llm_dim) / llm_dim**0.5))


def _resized(map_: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A map of features made smaller: [Y, X, D] -> [*shape, D]."""
    if map_.shape[:2] == shape:
        return map_
    return nn.functional.interpolate(map_.permute(2, 0, 1)[None], shape, mode="bilinear")[0].permute(1, 2, 0)


def _ended(map_: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
    """Every row with the newline feature at its end: [Y, X, D] -> [Y, X + 1, D]."""
    assert newline is not None, "spatial_unpad comes with a newline"
    ends = newline.to(map_.dtype).expand(map_.shape[0], 1, -1)  # [Y, 1, D]
    return torch.cat([map_, ends], dim=1)
