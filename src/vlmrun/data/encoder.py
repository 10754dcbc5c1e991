"""All that turns a sample into token ids, labels and pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmrun.arch.tiles import n_tiles
from vlmrun.config.schema import Compat, Slices
from vlmrun.config.schema.base import Aspect
from vlmrun.data.compat import labels, minicpm
from vlmrun.data.compat.settings import Project
from vlmrun.data.encode import Encoded, encode
from vlmrun.data.images import grid as slices
from vlmrun.data.images.cache import Fitted, PictureCache
from vlmrun.data.images.finding import ImageFolder, find_image
from vlmrun.data.images.loading import image_size, load_image
from vlmrun.data.images.patch_strips import joined
from vlmrun.data.images.seeing import ON_WHITE, View
from vlmrun.data.images.transform import ImageLayout, ImageTransform
from vlmrun.data.sample import Sample
from vlmrun.data.templates import Template
from vlmrun.errors import DataError

Layouts = tuple[ImageLayout | None, ...]


@dataclass(frozen=True)
class Encoder:
    """All that turns a sample into an item."""

    template: Template
    tokenizer: Any
    image_transform: ImageTransform
    aspect: Aspect
    image_tokens: Callable[[ImageLayout | None], int]
    max_length: int
    compat: Compat | None = None
    view: View = ON_WHITE
    draft: int | None = None  # `images.load_image`
    pictures: PictureCache | None = None
    slices: Slices | None = None

    def encode(self, sample: Sample, layouts: Layouts | None = None) -> Encoded:
        """Token ids and labels.

        Args:
            layouts: how each of its images was cut; None: none was.

        Raises:
            DataError: naming the record, for one that cannot be encoded.
        """
        try:
            return self._encode(sample, layouts)
        except DataError as error:
            raise DataError([replace(each, where=each.where or sample.where) for each in error.problems]) from error

    def _encode(self, sample: Sample, layouts: Layouts | None) -> Encoded:
        each = (None,) * len(sample.images) if layouts is None else layouts
        counts = [self.image_tokens(layout) for layout in each]
        if self.aspect == "slices" or self.labels_of == "minicpm":
            return encode(
                sample,
                self.template,
                self.tokenizer,
                image_tokens=self.spans(each),
                max_length=self.max_length,
                blocks=self.blocks(each),
                relabel=None if self.labels_of is None else minicpm.relabel(self.template, self.tokenizer),
            )
        if self.labels_of is not None:
            return labels.encode(
                sample, self.template, self.tokenizer, self.labels_of, image_tokens=counts, max_length=self.max_length
            )
        return encode(sample, self.template, self.tokenizer, image_tokens=counts, max_length=self.max_length)

    def blocks(self, layouts: Layouts) -> list[str] | None:
        """The text that stands for each image, where it is more than a place."""
        if self.aspect != "slices" or self.slices is None:
            return None
        return slices.blocks([layout.grid if layout else None for layout in layouts], self.slices)

    def spans(self, layouts: Layouts) -> list[int]:
        """Positions that each `IMAGE_TOKEN` takes: one stands for each tile under `slices`, else for each image."""
        if self.aspect != "slices":
            return [self.image_tokens(layout) for layout in layouts]
        return [self.image_tokens(None)] * sum(n_tiles(layout) for layout in layouts)

    @property
    def labels_of(self) -> Project | None:
        """The project whose label arithmetic is reproduced, if any."""
        return None if self.compat is None else self.compat.labels

    @property
    def as_upstream(self) -> bool:
        """Whether records are taken as upstream takes them."""
        return self.compat is not None and self.compat.records

    def pixels(self, sample: Sample, folder: ImageFolder | None) -> tuple[np.ndarray, Layouts]:
        """Pixels of all tiles of all its images, [n_tiles, 3, height, width], and how each image was cut."""
        if not sample.images:
            return self.blank(0)
        found = [self._pixels_of(folder, name, sample.where) for name in sample.images]
        return joined([pixels for pixels, _ in found]), tuple(layout for _, layout in found)

    def layouts(self, sample: Sample, folder: ImageFolder | None) -> Layouts:
        """How each of its images is cut, known from their sizes; nothing is read of images that are not."""
        if self.aspect not in ("anyres", "slices"):
            return (None,) * len(sample.images)
        sizes = [image_size(folder, name, sample.where, self.view) for name in sample.images]
        return tuple(self.image_transform.layout(size) for size in sizes)

    def blank(self, n_images: int) -> tuple[np.ndarray, Layouts]:
        """As many empty images, and how they are cut."""
        return self.image_transform.blank(n_images, self.aspect)

    def _pixels_of(self, folder: ImageFolder | None, name: str, where: str) -> tuple[np.ndarray, ImageLayout | None]:
        file = find_image(folder, name, where)

        def make() -> Fitted:
            return self.image_transform.fit(load_image(file, where, view=self.view, draft=self.draft), self.aspect)

        try:
            fitted, layout = make() if self.pictures is None else self.pictures.get(file, make)
            return self.image_transform.scaled(fitted, layout, self.aspect)
        except DataError as error:  # the transform knows what is wrong, but not where
            raise DataError(
                [replace(p, where=p.where or f"{name}, named in {where}") for p in error.problems]
            ) from error
