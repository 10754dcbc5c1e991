"""Features of the tiles of one picture put together again.

Source:
    haotian-liu/LLaVA@c121f043 llava/model/llava_arch.py and llava/mm_utils.py (LLaVA 1.6 inference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from vlmrun.config.schema import Slices, Tiles
from vlmrun.errors import ConfigError, DataError

NEWLINE = "image_newline"  # name, in the connector's state, of the feature that ends each row of a picture


class Layout(Protocol):
    """How a picture was cut: data's `ImageLayout`."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Columns and rows of tiles, which a thumbnail of the whole goes before; None: one whole picture."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original."""

    @property
    def patches(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of patches in every tile, where tiles keep their shape."""


@dataclass(frozen=True)
class Tiling:
    """How many positions a picture takes, and how its features are laid out there; called with a layout or None.

    Args:
        per_tile: features the connector gives for one tile.
        merge: None: pictures are not cut.
    """

    per_tile: int
    merge: str | None = None

    def __call__(self, layout: Layout | None = None) -> int:
        """Image tokens of a picture; without a layout those of an ordinary one."""
        if layout is None:
            return self.per_tile
        if layout.grid is None:
            return self.per_tile + (self.merge == "spatial_unpad")
        columns, rows = layout.grid
        if self.merge != "spatial_unpad":
            return self.per_tile * (1 + columns * rows)
        top, bottom, left, right = self._kept(layout)
        return self.per_tile + (bottom - top) * (right - left + 1)

    def merged(
        self, features: torch.Tensor, layouts: Sequence[Layout | None], newline: torch.Tensor | None
    ) -> torch.Tensor:
        """All rows of all pictures, one after another.

        Shape:
            features [S, T, D], every tile of every picture in order; newline [D]; result [rows, D]
        """
        counts = [n_tiles(layout) for layout in layouts]
        if sum(counts) != len(features):
            raise DataError(
                f"{len(features)} tiles are given, the layouts of {len(layouts)} pictures say {sum(counts)}",
                "a batch",
                "give all tiles of every picture, the thumbnail first",
            )
        parts = features.split(counts)
        rows = [self._of_picture(part, layout, newline) for part, layout in zip(parts, layouts, strict=True)]
        return torch.cat(rows) if rows else features.flatten(0, 1)

    def _of_picture(self, part: torch.Tensor, layout: Layout | None, newline: torch.Tensor | None) -> torch.Tensor:
        if layout is None:
            return part.flatten(0, 1)
        if layout.grid is None:
            return _ended(part[0].unsqueeze(0), newline).flatten(0, 1) if self.merge == "spatial_unpad" else part[0]
        if self.merge == "flat":
            return part.flatten(0, 1)
        columns, rows = layout.grid
        side = self._side()
        # [row of tiles, column of tiles, y, x, D] -> the joined map [Y, X, D]
        tiles = part[1:].unflatten(1, (side, side)).unflatten(0, (rows, columns))
        whole = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        if self.merge == "spatial_unpad":
            top, bottom, left, right = self._kept(layout)
            whole = _ended(whole[top:bottom, left:right], newline)
        return torch.cat([part[0], whole.flatten(0, 1)])

    def _kept(self, layout: Layout) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of what is picture in the joined map; the rest shows the black border."""
        assert layout.grid is not None
        columns, rows = layout.grid
        width, height = layout.size
        wide, high = columns * self._side(), rows * self._side()
        if width / height > wide / high:
            border = (high - int(height * (wide / width))) // 2
            return border, high - border, 0, wide
        border = (wide - int(width * (high / height))) // 2
        return 0, high, border, wide - border

    def _side(self) -> int:
        side: int = round(self.per_tile**0.5)
        return side


def tiling(per_tile: int, tiles: Tiles | Slices | None) -> Tiling:
    """The rule of a model; the slices of a picture are one after another.

    Raises:
        ConfigError: when the features of a tile form no square map and the tiles are to be joined as maps.
    """
    if isinstance(tiles, Slices):
        return Tiling(per_tile, "flat")
    if tiles is not None and tiles.merge != "flat" and round(per_tile**0.5) ** 2 != per_tile:
        raise ConfigError(
            f"the connector's {per_tile} features of a tile are no square map", "model.tiles.merge", "merge: flat"
        )
    return Tiling(per_tile, None if tiles is None else tiles.merge)


def n_tiles(layout: Layout | None) -> int:
    """Pictures that the tower sees for one picture."""
    return 1 if layout is None or layout.grid is None else 1 + layout.grid[0] * layout.grid[1]


def grids_of(layouts: Sequence[Layout | None]) -> list[tuple[int, int]] | None:
    """Rows and columns of patches of every tile of every picture; None when all have the tower's own shape."""
    found = [patches for layout in layouts if layout is not None for patches in layout.patches]
    return found or None


def add_newline(connector: nn.Module, tiles: Tiles | Slices | None, llm_dim: int) -> None:
    """Gives the connector the feature that ends a row, where the way of merging has one."""
    if isinstance(tiles, Tiles) and tiles.merge == "spatial_unpad":
        connector.register_parameter(NEWLINE, nn.Parameter(torch.randn(llm_dim) / llm_dim**0.5))


def _ended(map_: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
    """Every row with the newline feature at its end."""
    assert newline is not None, "spatial_unpad comes with a newline"
    ends = newline.to(map_.dtype).expand(map_.shape[0], 1, -1)
    return torch.cat([map_, ends], dim=1)
