"""How many positions an image takes that is cut into tiles. Free of torch; model/tiles.py lays features out by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vlmrun.config.schema import Slices, Tiles
from vlmrun.errors import ConfigError

_WORTH_IT = 1.1  # a map that is hardly too large is left as it is


class Layout(Protocol):
    """How an image was cut: data's `ImageLayout`."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Columns and rows of tiles, which a thumbnail of the whole goes before; None: one whole image."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original."""

    @property
    def patches(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of patches in every tile, where tiles keep their shape."""


@dataclass(frozen=True)
class Counting:
    """How many positions an image takes; called with a layout or None.

    Args:
        per_tile: features the connector gives for one tile.
        merge: None: images are not cut.
        max_tiles: a joined map of more features than this many tiles have is made smaller; None: it never is.
    """

    per_tile: int
    merge: str | None = None
    max_tiles: int | None = None

    def __call__(self, layout: Layout | None = None) -> int:
        """Image tokens of an image; without a layout those of an ordinary one."""
        if layout is None:
            return self.per_tile
        if layout.grid is None:
            return self.per_tile + (self.merge == "spatial_unpad")
        columns, rows = layout.grid
        if self.merge != "spatial_unpad":
            return self.per_tile * (1 + columns * rows)
        high, wide = self.shown(layout)
        return self.per_tile + high * (wide + 1)  # a newline ends each row

    def most(self, grid: tuple[int, int]) -> int:
        """Image tokens of the image that takes most of all that fit into a grid.

        With `max_tiles` that is not the one that fills it: a larger map is made smaller, a narrow one has more rows,
        each with its newline.
        """
        columns, rows = grid
        if self.merge != "spatial_unpad":
            return self.per_tile * (1 + columns * rows)
        wide, high = columns * self.side, rows * self.side
        # Borders are the same on both sides, and on two sides at most.
        maps = [(high - border, wide) for border in range(0, high, 2)]
        maps += [(high, wide - border) for border in range(0, wide, 2)]
        return self.per_tile + max(y * (x + 1) for y, x in (self._made_smaller(*map_) for map_ in maps))

    def shown(self, layout: Layout) -> tuple[int, int]:
        """Rows and columns that are kept of the joined map."""
        top, bottom, left, right = self.kept(layout)
        return self._made_smaller(bottom - top, right - left)

    def _made_smaller(self, high: int, wide: int) -> tuple[int, int]:
        """Rows and columns of a map that is too large.

        Source: transformers 5.23 models/llava_onevision pack_image_features
        """
        times = 0.0 if self.max_tiles is None else math.sqrt(high * wide / (self.max_tiles * self.side**2))
        return (int(high // times), int(wide // times)) if times > _WORTH_IT else (high, wide)

    def kept(self, layout: Layout) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of what is image in the joined map; the rest shows the black border."""
        assert layout.grid is not None
        columns, rows = layout.grid
        width, height = layout.size
        wide, high = columns * self.side, rows * self.side
        if width / height > wide / high:
            border = (high - int(height * (wide / width))) // 2
            return border, high - border, 0, wide
        border = (wide - int(width * (high / height))) // 2
        return 0, high, border, wide - border

    @property
    def side(self) -> int:
        """Edge of the map that the features of a tile form."""
        return math.isqrt(self.per_tile)


def merge_of(per_tile: int, tiles: Tiles | Slices | None) -> str | None:
    """How the features of tiles are put together; the slices of an image are one after another.

    Raises:
        ConfigError: when the features of a tile form no square map and the tiles are to be joined as maps.
    """
    if tiles is None or isinstance(tiles, Slices):
        return None if tiles is None else "flat"
    if tiles.merge != "flat" and math.isqrt(per_tile) ** 2 != per_tile:
        raise ConfigError(
            f"the connector's {per_tile} features of a tile are no square map", "model.tiles.merge", "merge: flat"
        )
    return tiles.merge


def n_tiles(layout: Layout | None) -> int:
    """Images that the tower sees for one image."""
    return 1 if layout is None or layout.grid is None else 1 + layout.grid[0] * layout.grid[1]


class Most(NamedTuple):
    """Of an image that is cut as often as allowed: positions, and pieces that the tower sees."""

    tokens: int
    pieces: int


def most(per_tile: int, tiles: Tiles | Slices | None, aspect: str | None, edge: int | None) -> Most:
    """What an image takes at most.

    Args:
        aspect: `image_aspect` of the stage.
        edge: pixels along an edge of a tile; None: not known, and grids are not looked at.

    Raises:
        ConfigError: as `merge_of`.
    """
    if aspect == "slices" and isinstance(tiles, Slices):
        pieces = 1 + tiles.max_slices * (tiles.max_slices > 1)
        return Most(per_tile * pieces, pieces)
    if aspect != "anyres" or not isinstance(tiles, Tiles) or edge is None:
        return Most(per_tile, 1)
    counting = Counting(per_tile, merge_of(per_tile, tiles), tiles.max_tiles)
    grids = [(width // edge, height // edge) for width, height in tiles.grids]  # no multiples: refused elsewhere
    grids = [grid for grid in grids if all(grid)]
    pieces = max((1 + columns * rows for columns, rows in grids), default=1)
    return Most(max(map(counting.most, grids), default=per_tile), pieces)
