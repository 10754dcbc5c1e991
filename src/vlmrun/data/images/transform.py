"""Turning images into the pixels a tower expects, equal bit for bit to transformers' processors. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlmrun.config.schema import Aspect, Slices, Tiles
from vlmrun.data.images import grid as slices
from vlmrun.data.images.fitting import best_grid, center_crop, fit_into, pad_to_square
from vlmrun.data.images.patch_strips import strips
from vlmrun.errors import CheckpointError, ConfigError, DataError


@dataclass(frozen=True)
class ImageLayout:
    """How an image was cut into tiles.

    Args:
        grid: columns and rows of tiles, which a thumbnail of the whole goes before; None: one whole image.
        size: width and height of the original.
        patches: rows and columns of patches in every tile, where tiles keep their shape; empty: all are alike.
    """

    grid: tuple[int, int] | None
    size: tuple[int, int]
    patches: tuple[tuple[int, int], ...] = ()


class ImageTransform:
    """Resize, crop, rescale and normalise as `preprocessor_config.json` says.

    The arithmetic is that of transformers' Pillow-based processors, step by step in the same types, so that pixels are
    equal bit for bit.

    Args:
        config: the parsed preprocessor_config.json. A `patch_size` there says that the tower takes images of any
            shape in whole patches.
        tiles: how images are cut under `anyres` (grids, multiples of the tower's size) or under `slices`.

    Attributes:
        size: height and width of every result that is not a slice of its own shape.

    Raises:
        CheckpointError: when the configuration does not lead to images of one size.
    """

    def __init__(self, config: dict[str, Any], tiles: Tiles | Slices | None = None) -> None:
        self.resample = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC))
        self.resize = _size(config.get("size")) if config.get("do_resize", True) else None
        self.crop = _size(config.get("crop_size")) if config.get("do_center_crop", False) else None
        self.rescale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else None
        self.mean = np.array(config.get("image_mean", [0.5] * 3), dtype=np.float32)
        self.std = np.array(config.get("image_std", [0.5] * 3), dtype=np.float32)
        self.normalise = bool(config.get("do_normalize", True))
        self.pad_colour = tuple(int(float(value) * 255) for value in config.get("image_mean", [0.5] * 3))
        self.size = self._result_size()
        self.patch: int | None = config.get("patch_size")
        self.slices = tiles if isinstance(tiles, Slices) else None
        self.grids = [(width, height) for width, height in tiles.grids] if isinstance(tiles, Tiles) else []
        self._check_grids()

    def tiles(self, image: Image.Image, aspect: Aspect) -> tuple[np.ndarray, ImageLayout | None]:
        """Pixels of all tiles of one RGB image, [n_tiles, 3, height, width] of float32, and how it was cut."""
        return self.scaled(*self.fit(image, aspect), aspect)

    def fit(self, image: Image.Image, aspect: Aspect) -> tuple[np.ndarray, ImageLayout | None]:
        """All tiles of one RGB image before rescaling and normalising, and how it was cut; None: it was not.

        Under `anyres` it is fitted into the grid that shows most of it, black around it, cut row by row, and a
        thumbnail of the whole, not keeping its shape, goes first. Under `slices` see `data.slices`.

        Shape:
            [n_tiles, 3, height, width], uint8; slices of their own shape are [n_tiles, 3, patch, patch * longest].

        Source:
            haotian-liu/LLaVA@c121f043 llava/mm_utils.py process_anyres_image
        """
        if aspect == "slices":
            return self._sliced(image)
        if aspect == "pad_after":
            return self._in_corner(image)[None], ImageLayout(None, image.size)
        if aspect != "anyres":
            return self._fit(image, aspect)[None], None
        if not self.grids:
            raise ConfigError("image_aspect is anyres, but the model has no tiles", "model.tiles", "give its grids")
        layout = self.layout(image.size)
        edge = self.size[0]
        assert layout.grid is not None  # under anyres an image is always cut
        columns, rows = layout.grid
        fitted = fit_into(image, (columns * edge, rows * edge))
        places = [(column * edge, row * edge) for row in range(rows) for column in range(columns)]
        cut = [fitted.crop((left, top, left + edge, top + edge)) for left, top in places]
        pixels = [self._fit(tile, "square") for tile in [image.resize((edge, edge)), *cut]]
        return np.stack(pixels), layout

    def blank(self, n_images: int, aspect: Aspect) -> tuple[np.ndarray, tuple[ImageLayout | None, ...]]:
        """As many empty images, and how they are cut."""
        if aspect != "slices" or self.patch is None:
            return np.zeros((n_images, 3, *self.size), dtype=np.float32), (None,) * n_images
        rows, columns = (edge // self.patch for edge in self.size)
        layout = ImageLayout(None, self.size[::-1], ((rows, columns),))
        shape = (n_images, 3, self.patch, self.patch * rows * columns)
        return np.zeros(shape, dtype=np.float32), (layout,) * n_images

    def layout(self, size: tuple[int, int]) -> ImageLayout:
        """How an image of this size is cut, under `anyres` or `slices` as the model has it."""
        if self.slices is None:
            grid = best_grid(size, self.grids)
            return ImageLayout((grid[0] // self.size[1], grid[1] // self.size[0]), size)
        if self.patch is None:
            return ImageLayout(slices.best_grid(size, self.slices), size)
        where = slices.plan(size, self.slices, self.patch)
        return ImageLayout(where.grid, size, where.patches(self.patch))

    def _sliced(self, image: Image.Image) -> tuple[np.ndarray, ImageLayout]:
        if self.slices is None:
            raise ConfigError("image_aspect is slices, but the model has none", "model.tiles", "give its max_slices")
        layout = self.layout(image.size)
        if self.patch is not None:
            tiles = slices.cut(image, slices.plan(image.size, self.slices, self.patch))
            return strips([np.moveaxis(np.asarray(tile), -1, 0) for tile in tiles], self.patch), layout
        edges = self.size[::-1]
        tiles = slices.cut(image, slices.Cut(edges, layout.grid, None if layout.grid is None else edges))
        return np.stack([self._fit(tile, "square") for tile in [image, *tiles[1:]]]), layout

    def _check_grids(self) -> None:
        height, width = self.size
        wrong = [grid for grid in self.grids if grid[0] % width or grid[1] % height]
        if self.grids and (wrong or height != width):
            raise ConfigError(
                f"grid {list((wrong or self.grids)[0])} is no multiple of the tower's {width} x {height} pixels",
                "model.tiles.grids",
                f"multiples of {width}, such as [{width}, {2 * height}]",
            )

    def __call__(self, image: Image.Image, aspect: Aspect) -> np.ndarray:
        """Pixels of one RGB image that is not cut, [3, height, width] of float32."""
        pixels: np.ndarray = self.tiles(image, aspect)[0][0]
        return pixels

    def scaled(
        self, fitted: np.ndarray, layout: ImageLayout | None, aspect: Aspect
    ) -> tuple[np.ndarray, ImageLayout | None]:
        """What the tower takes of what `fit` gave, and how it was cut; None: it was not."""
        if aspect != "pad_after" or layout is None:
            return self.scale(fitted, layout), layout
        pixels = self.scale(fitted)
        width, height = self._longest_side_fits(layout.size)
        pixels[..., height:, :] = 0
        pixels[..., width:] = 0
        return pixels, None

    def scale(self, fitted: np.ndarray, layout: ImageLayout | None = None) -> np.ndarray:
        """Rescales and normalises what `fit` gives; what fills a strip up stays zero."""
        pixels = np.stack([self._scale(tile) for tile in fitted])
        for tile, (rows, columns) in zip(pixels, layout.patches if layout else (), strict=False):
            tile[..., (self.patch or 1) * rows * columns :] = 0
        return pixels

    def _scale(self, pixels: np.ndarray) -> np.ndarray:
        if self.rescale is not None:
            pixels = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        if self.normalise:
            pixels = ((pixels.astype(np.float32).T - self.mean) / self.std).T
        return np.ascontiguousarray(pixels, dtype=np.float32)

    def _fit(self, image: Image.Image, aspect: Aspect) -> np.ndarray:
        """One tile.

        Args:
            aspect: `pad` makes the image square with a border in the mean color first; `square` leaves that to the
                processor (CLIP crops the center, SigLIP squeezes); anyres is done by `fit`.

        Shape:
            [3, height, width], uint8.
        """
        if aspect == "pad":
            image = pad_to_square(image, self.pad_colour)
        if self.resize is not None:
            width, height = self._resized(image.width, image.height)
            image = image.resize((width, height), resample=self.resample)
        pixels = np.moveaxis(np.array(image), -1, 0)
        if self.crop is not None:
            pixels = center_crop(pixels, *self._crop_size())
        return pixels

    def _in_corner(self, image: Image.Image) -> np.ndarray:
        """The image in the upper left of the tower's, as large as it goes; what is left is filled after `scale`.

        Source: alibaba/Pai-Megatron-Patch@a098ca5 examples/llava_mcore/image_processing.py, get_visual_transform
        """
        width, height = self._longest_side_fits(image.size)
        canvas = np.zeros((3, *self.size), dtype=np.uint8)
        canvas[:, :height, :width] = np.moveaxis(np.array(image.resize((width, height), resample=self.resample)), -1, 0)
        return canvas

    def _longest_side_fits(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of an image of this size when its longest side is the tower's."""
        scale = max(self.size) / max(size)
        width, height = (int(side * scale + 0.5) for side in size)
        if not width or not height:
            raise DataError(
                f"an image of {size[0]} x {size[1]} pixels would have no width or height left",
                fix="crop it to a less extreme shape, or use image_aspect: pad",
            )
        return width, height

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self.resize is not None
        if "height" in self.resize:
            return self.resize["width"], self.resize["height"]
        edge = self.resize["shortest_edge"]
        long = int(edge * max(width, height) / min(width, height))
        if Image.MAX_IMAGE_PIXELS is not None and edge * long > Image.MAX_IMAGE_PIXELS:
            raise DataError(
                f"an image of {width} x {height} pixels would grow to {edge} x {long}",
                fix="crop it to a less extreme shape, or use image_aspect: pad",
            )
        return (edge, long) if width <= height else (long, edge)

    def _crop_size(self) -> tuple[int, int]:
        assert self.crop is not None
        return (self.crop["height"], self.crop["width"]) if "height" in self.crop else (self.crop["shortest_edge"],) * 2

    def _result_size(self) -> tuple[int, int]:
        if self.crop is not None:
            return self._crop_size()
        if self.resize is not None and "height" in self.resize:
            return self.resize["height"], self.resize["width"]
        raise CheckpointError(
            "the image processor leaves images of different sizes",
            "preprocessor_config.json",
            'give `size` as {"height": n, "width": n}, or `crop_size` and do_center_crop',
        )


def _size(value: Any) -> dict[str, int]:
    """`size` and `crop_size` come as a number or as one of two kinds of dict."""
    if isinstance(value, int):
        return {"shortest_edge": value}
    if isinstance(value, dict) and (set(value) >= {"height", "width"} or "shortest_edge" in value):
        return {key: int(number) for key, number in value.items() if number is not None}
    raise CheckpointError(
        f"image size {value!r} is not understood", "preprocessor_config.json", 'use {"height": n, "width": n}'
    )
