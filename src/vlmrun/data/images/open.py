"""Opening images safely, and turning them into the pixels a tower expects. Free of torch."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vlmrun.config.schema import Aspect, Slices, Tiles
from vlmrun.data.images import grid as slices
from vlmrun.data.images.patch_strips import strips
from vlmrun.data.shards.tar import Place, parse_place
from vlmrun.errors import CheckpointError, ConfigError, DataError, closest

# What Pillow's decoders raise on damaged files, by experience: far more than the documented OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Picture:
    """A picture's file, or its place in the shard that `path` is."""

    path: Path
    place: Place | None = None

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.path.name if self.place is None else self.place.name

    def __str__(self) -> str:
        return str(self.path if self.place is None else self.path.with_name(str(self.place).rpartition("/")[2]))

    def opened(self) -> Path | BinaryIO:
        """What Pillow reads it from."""
        return self.path if self.place is None else self.place.open(self.path)


def open_image(root: Path | None, name: str, where: str = "") -> Image.Image:
    """Opens an image below `root` and converts it to RGB. EXIF rotation is ignored, as upstream ignores it.

    Args:
        root: the folder that the file must stay in, links and `..` followed.
        where: the record that names the image.

    Raises:
        DataError: when the file is outside the root, missing, damaged, or too large to be opened safely.
    """
    return load_image(find_image(root, name, where), where)


def find_image(root: Path | None, name: str, where: str = "", *, suggesting: bool = True) -> Picture:
    """An image below `root`, not opened yet: a file, or a member of a tar shard (`shards.tar.Place`).

    Args:
        suggesting: name the nearest file when there is none; too slow for very many.

    Raises:
        DataError: when the file is outside the root, missing, or in a folder that may not be looked into.
    """
    place = parse_place(name)
    path = _confined(root, name if place is None else place.shard, where)
    try:
        is_there = path.is_file()
    except OSError as error:  # no right to look into the folder, a name that is too long
        raise DataError(f"image {name!r} cannot be found: {error.strerror}", _place(path, where), "check it") from error
    if not is_there:
        # A near name is looked for among the first files only: folders of a million images are common.
        names = [p.name for p in islice(path.parent.iterdir(), 1000)] if suggesting and path.parent.is_dir() else []
        near = closest(path.name, names)
        fix = f"did you mean {near!r}?" if near else "check data.<name>.images, or on_error: skip"
        raise DataError(f"image {name!r} does not exist", _place(path, where), fix)
    return Picture(path, place)


def load_image(picture: Path | Picture, where: str = "", *, draft: int | None = None) -> Image.Image:
    """Opens an image from anywhere.

    Args:
        where: the record that names the image; empty for one a person names.
        draft: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as no edge falls below so
            many pixels; several times faster, and not equal to the bit.
    """
    try:
        source = picture.opened() if isinstance(picture, Picture) else picture
        return _decoded(source, picture.name, _place(picture, where), draft)
    except FileNotFoundError as error:
        raise DataError(f"image {picture.name!r} does not exist", _place(picture, where), "check the path") from error
    except _DAMAGED as error:
        raise DataError(
            f"image {picture.name!r} cannot be read: {error}",
            _place(picture, where),
            "replace the file, or on_error: skip" if where else "choose another picture",
        ) from error


def image_of(data: bytes, name: str) -> Image.Image:
    """An image file that was sent; raises as `load_image`."""
    try:
        return _decoded(BytesIO(data), name, "", None)
    except _DAMAGED as error:
        raise DataError(f"{name} cannot be read: {error}", "", "send another image") from error


def _decoded(source: Path | BinaryIO, name: str, place: str, draft: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                if draft is not None:
                    image.draft("RGB", (draft, draft))
                return image.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise DataError(
            f"image {name!r} is too large: {error}", place, f"make it smaller than {Image.MAX_IMAGE_PIXELS} pixels"
        ) from error


def image_size(root: Path | None, name: str, where: str = "") -> tuple[int, int]:
    """Width and height, read from the file's head; raises as `open_image`."""
    picture = find_image(root, name, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(picture.opened()) as image:
                return image.size
    except (*_DAMAGED, Image.DecompressionBombError):
        return load_image(picture, where).size  # says what is wrong with it


def _confined(root: Path | None, name: str, where: str) -> Path:
    if root is None:
        raise DataError(
            f"record names image {name!r}, but its data has no image folder", where, "set data.<name>.images"
        )
    try:
        top = _resolved(root)
        path = Path(os.path.realpath(top / name))
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
        raise DataError(f"image name {name!r} is not a usable path: {error}", where, "correct the name") from error
    if not path.is_relative_to(top):
        raise DataError(
            f"image {name!r} lies outside the image folder {top}", where, "keep images below data.<name>.images"
        )
    return path


@lru_cache(maxsize=64)
def _resolved(root: Path) -> Path:
    return root.resolve()


def _place(picture: Path | Picture, where: str) -> str:
    return f"{picture}, named in {where}" if where else str(picture)


@dataclass(frozen=True)
class ImageLayout:
    """How a picture was cut into tiles.

    Args:
        grid: columns and rows of tiles, which a thumbnail of the whole goes before; None: one whole picture.
        size: width and height of the original.
        patches: rows and columns of patches in every tile, where tiles keep their shape; empty: all are alike.
    """

    grid: tuple[int, int] | None
    size: tuple[int, int]
    patches: tuple[tuple[int, int], ...] = ()


class ImageTransform:
    """Resize, crop, rescale and normalise as `preprocessor_config.json` says.

    The arithmetic is that of transformers' Pillow-based processors, step by step in the same types, so that pixels are
    equal to the bit.

    Args:
        config: the parsed preprocessor_config.json. A `patch_size` there says that the tower takes pictures of any
            shape in whole patches.
        tiles: how pictures are cut under `anyres` (grids, multiples of the tower's size) or under `slices`.

    Attributes:
        size: height and width of every result that is not a slice of its own shape.

    Raises:
        CheckpointError: when the configuration does not lead to pictures of one size.
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
        columns, rows = layout.grid
        fitted = fit_into(image, (columns * edge, rows * edge))
        places = [(column * edge, row * edge) for row in range(rows) for column in range(columns)]
        cut = [fitted.crop((left, top, left + edge, top + edge)) for left, top in places]
        pixels = [self._fit(tile, "square") for tile in [image.resize((edge, edge)), *cut]]
        return np.stack(pixels), layout

    def blank(self, n_images: int, aspect: Aspect) -> tuple[np.ndarray, tuple[ImageLayout | None, ...]]:
        """As many empty pictures, and how they are cut."""
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
        return self.tiles(image, aspect)[0][0]

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
            aspect: `pad` makes the image square with a border in the mean colour first; `square` leaves that to the
                processor (CLIP crops the centre, SigLIP squeezes); anyres is done by `fit`.

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
            pixels = _center_crop(pixels, *self._crop_size())
        return pixels

    def _in_corner(self, image: Image.Image) -> np.ndarray:
        """The picture in the upper left of the tower's, as large as it goes; what is left is filled after `scale`.

        Source: alibaba/Pai-Megatron-Patch@a098ca5 examples/llava_mcore/image_processing.py, get_visual_transform
        """
        width, height = self._longest_side_fits(image.size)
        canvas = np.zeros((3, *self.size), dtype=np.uint8)
        canvas[:, :height, :width] = np.moveaxis(np.array(image.resize((width, height), resample=self.resample)), -1, 0)
        return canvas

    def _longest_side_fits(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture of this size when its longest side is the tower's."""
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
            "the image processor leaves pictures of different sizes",
            "preprocessor_config.json",
            'give `size` as {"height": n, "width": n}, or `crop_size` and do_center_crop',
        )


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Pastes the image into the middle of a square of its longer side; an odd row or column goes below or right."""
    side = max(image.size)
    if image.width == image.height:
        return image
    if Image.MAX_IMAGE_PIXELS is not None and side * side > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"an image of {image.width} x {image.height} pixels would grow to {side} x {side}",
            fix="crop it to a less extreme shape",
        )
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def best_grid(size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The grid that keeps most pixels of an image of this size and, of several, wastes least; ties go to the first."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=worth)


def fit_into(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as large as it goes in the middle of a black picture of this size."""
    scale_x, scale_y = size[0] / image.width, size[1] / image.height
    if scale_x < scale_y:
        fitted = (size[0], min(math.ceil(image.height * scale_x), size[1]))
    else:
        fitted = (min(math.ceil(image.width * scale_y), size[0]), size[1])
    whole = Image.new("RGB", size, (0, 0, 0))
    whole.paste(image.resize(fitted), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return whole


def _size(value: Any) -> dict[str, int]:
    """`size` and `crop_size` come as a number or as one of two kinds of dict."""
    if isinstance(value, int):
        return {"shortest_edge": value}
    if isinstance(value, dict) and (set(value) >= {"height", "width"} or "shortest_edge" in value):
        return {key: int(number) for key, number in value.items() if number is not None}
    raise CheckpointError(
        f"image size {value!r} is not understood", "preprocessor_config.json", 'use {"height": n, "width": n}'
    )


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the middle; what is too small is surrounded with zeros."""
    _, old_height, old_width = pixels.shape
    top_pad = max(0, -(-(height - old_height) // 2))
    left_pad = max(0, -(-(width - old_width) // 2))
    if top_pad or left_pad:
        canvas = np.zeros((3, max(height, old_height), max(width, old_width)), dtype=pixels.dtype)
        canvas[:, top_pad : top_pad + old_height, left_pad : left_pad + old_width] = pixels
        pixels = canvas
    top = (old_height - height) // 2 + top_pad
    left = (old_width - width) // 2 + left_pad
    return pixels[:, top : top + height, left : left + width]
