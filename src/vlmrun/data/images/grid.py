"""Cutting an image into slices of its own shape (LLaVA-UHD, MiniCPM-V), and what stands for them in the text.

An image larger than `resolution` squared pixels gives an overview of the whole and a grid of cells, each of about that
area and with sides that are multiples of the tower's patch. Free of torch.

Source: OpenBMB/MiniCPM-V@247a576 finetune/dataset.py (slice_image and its helpers); `image_ids` 0dbb566, the same file
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlmrun.config.schema import Slices
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.data.templates import Piece

if TYPE_CHECKING:
    from PIL import Image

TILE = "\x00tile\x00"  # one tile's features in the text of an image's block; no user writes it

Size = tuple[int, int]  # width, height
Grid = tuple[int, int]  # columns, rows


@dataclass(frozen=True)
class Cut:
    """Where an image is cut.

    Args:
        overview: size of the whole image as the tower sees it first.
        grid: of the cells; None: there are none.
        cell: size of each.
    """

    overview: Size
    grid: Grid | None = None
    cell: Size | None = None

    @property
    def refined(self) -> Size | None:
        """Size that the image is brought to before the cells are cut from it."""
        if self.grid is None or self.cell is None:
            return None
        return self.cell[0] * self.grid[0], self.cell[1] * self.grid[1]

    def patches(self, patch: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of patches in the overview and every cell."""
        columns, rows = self.grid or (0, 0)
        sizes = [self.overview, *[self.cell or self.overview] * (columns * rows)]
        return tuple((height // patch, width // patch) for width, height in sizes)


def plan(size: Size, rules: Slices, patch: int) -> Cut:
    """How an image of this size is cut for a tower with patches of `patch` pixels."""
    grid = best_grid(size, rules)
    if grid is None:
        return Cut(fit(size, rules.resolution, patch, upscale=True))
    columns, rows = grid
    share = (multiple_of(size[0], columns) / columns, multiple_of(size[1], rows) / rows)
    cell = fit(share, rules.resolution, patch, upscale=True)
    return Cut(fit(size, rules.resolution, patch, upscale=False), grid, cell)


def best_grid(size: Size, rules: Slices) -> Grid | None:
    """The grid nearest in shape among those of about as many cells as the area asks for; None: one image will do."""
    width, height = size
    wanted = min(math.ceil(width * height / rules.resolution**2), rules.max_slices)
    if wanted <= 1:
        return None
    counts = [n for n in (wanted - 1, wanted, wanted + 1) if n != 1 and n <= rules.max_slices]
    grids = [(columns, n // columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    shape = math.log(width / height)
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))  # of equals the first


def fit(size: tuple[float, float], resolution: int, patch: int, *, upscale: bool) -> Size:
    """The size of about `resolution` squared pixels with this shape, in whole patches; smaller ones stay so unless
    `upscale`."""
    width, height = size
    if width * height > resolution * resolution or upscale:
        shape = width / height
        height = int(resolution / math.sqrt(shape))
        width = int(height * shape)
    return multiple_of(width, patch), multiple_of(height, patch)


def multiple_of(value: float, unit: int) -> int:
    """The nearest multiple, at least one."""
    return max(round(value / unit) * unit, unit)


def cut(image: Image.Image, where: Cut) -> list[Image.Image]:
    """The overview, then the cells row by row."""
    from PIL import Image

    tiles = [image.resize(where.overview, Image.Resampling.BICUBIC)]
    if where.grid is None or where.cell is None or where.refined is None:
        return tiles
    whole = image.resize(where.refined, Image.Resampling.BICUBIC)
    (columns, rows), (width, height) = where.grid, where.cell
    for row in range(rows):
        for column in range(columns):
            left, top = column * width, row * height
            tiles.append(whole.crop((left, top, left + width, top + height)))
    return tiles


def block(grid: Grid | None, rules: Slices, number: int | None = None) -> str:
    """What stands in the text for an image cut so: `TILE` for each tile, and the marks around them.

    Args:
        number: of the image, written before it; None: it is not written.
    """
    if rules.marks is None:
        return TILE * (1 if grid is None else 1 + grid[0] * grid[1])
    unit = f"<image>{TILE}</image>"
    start = "" if number is None else f"<image_id>{number}</image_id>"
    if grid is None:
        return start + unit
    columns, rows = grid
    if rules.marks == "nested":
        return start + unit + "<slice>" + "\n".join([unit * columns] * rows) + "</slice>"
    return start + unit + "\n".join([f"<slice>{TILE}</slice>" * columns] * rows)


def blocks(grids: Sequence[Grid | None], rules: Slices) -> list[str]:
    """What stands for each of a sample's images. Under `image_ids: sliced` only those that are cut have a number, and
    only they are counted, as MiniCPM-V's finetuning has it."""
    found, number = [], 0
    for grid in grids:
        numbered = rules.image_ids == "always" or (rules.image_ids == "sliced" and grid is not None)
        found.append(block(grid, rules, number if numbered else None))
        number += numbered
    return found


def in_place(pieces: Iterable[Piece], texts: Iterable[str]) -> list[Piece]:
    """The pieces of a conversation with every image tag replaced by its image's block."""
    each = iter(texts)
    found = []
    for piece in pieces:
        first, *others = piece.text.split(IMAGE_TAG)
        found.append(replace(piece, text=first + "".join(next(each) + other for other in others)))
    return found


def marks_of(rules: Slices) -> tuple[str, ...]:
    """The strings of the blocks that must each be one token."""
    if rules.marks is None:
        return ()
    numbers = () if rules.image_ids == "never" else ("<image_id>", "</image_id>")
    return ("<image>", "</image>", "<slice>", "</slice>", *numbers)
