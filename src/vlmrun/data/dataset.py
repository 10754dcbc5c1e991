"""The lazy dataset: images are opened and text is encoded when a sample is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlmrun.data.encode import Encoded
from vlmrun.data.encoder import Encoder, Layouts
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.index import Index
from vlmrun.data.sample import Sample, locate_record
from vlmrun.errors import DataError
from vlmrun.ids import IGNORE


@dataclass(frozen=True)
class Item:
    """A sample ready to be put into a batch.

    Args:
        pixels: all tiles of all images in order, [n_tiles, 3, height, width], float32.
        layouts: how each image was cut; None: none was, and every row of `pixels` is an image.
        number: of the sample in its dataset, where it comes from one.
        skipped: why nothing of it is supervised (`on_error: skip`), else None.
    """

    encoded: Encoded
    pixels: np.ndarray
    id: str
    skipped: str | None = None
    layouts: Layouts | None = None
    number: int | None = None

    @property
    def each_layout(self) -> Layouts:
        """One layout for every image."""
        return (None,) * len(self.pixels) if self.layouts is None else self.layouts


@dataclass(frozen=True)
class Source:
    """Where a run of samples comes from and how its problems are met."""

    images: ImageFolder | None
    skip: bool


class Dataset:
    """Samples of one or several sources, one after the other; usable by loader processes."""

    def __init__(self, samples: Index, sources: Sequence[Source], encoder: Encoder) -> None:
        """Args: sources: one for each of `samples.counts`."""
        assert len(samples.counts) == len(sources)
        self._samples = samples
        self._sources = sources
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self._samples)

    def counts(self) -> list[int]:
        """Samples of each source, in order."""
        return self._samples.counts

    def lengths(self) -> list[int]:
        """Words of every sample; negative for one without an image."""
        found: list[int] = self._samples.words.tolist()
        return found

    def places(self) -> list[int]:
        """The number of every sample's record in its file, or in the line of all shards."""
        return [self.place(index) for index in range(len(self))]

    def has_pictures(self) -> bool:
        """Whether any sample has one."""
        return bool((self._samples.words > 0).any())

    def sample(self, index: int) -> Sample:
        """The record before encoding."""
        return self._samples[index]

    def name(self, index: int) -> str:
        """The data entry that a sample comes from."""
        return self._samples.names[self._samples.source(index)]

    def place(self, index: int) -> int:
        """The number of a sample's record in its file, or in the line of all shards."""
        return self._samples[index].source[1]

    def sample_id(self, index: int) -> str:
        """The id that the record can be found by: its own, or file and index."""
        sample = self._samples[index]
        return sample.id or locate_record(sample.source, "")

    def __getitem__(self, index: int) -> Item:
        """Encodes one sample.

        A sample that turns out to be bad here keeps its place under `on_error: skip`, so that the order of all others
        stays as it was: its item has no label and blank images.

        Raises:
            DataError: under `on_error: fail`.
        """
        sample, source = self._samples[index], self._sources[self._samples.source(index)]
        try:
            pixels, layouts = self.encoder.pixels(sample, source.images)
        except DataError as error:
            if not source.skip:
                raise
            return self._unusable(index, error, self._text_of(sample))
        try:
            encoded = self.encoder.encode(sample, layouts)
        except DataError as error:
            if not source.skip:
                raise
            return self._unusable(index, error)
        # Under compat.labels only: the place in the batch stays, and the sample is listed.
        skipped = None if encoded.n_supervised else f"{self.encoder.labels_of} drops all labels of this sample"
        return Item(encoded, pixels, self.sample_id(index), skipped, layouts, index)

    def text(self, index: int) -> Item:
        """One sample without its pixels, as long as `dataset[index]`; its images are not decoded, only measured.

        Raises:
            DataError: under `on_error: fail`.
        """
        sample, source = self._samples[index], self._sources[self._samples.source(index)]
        try:
            layouts = self.encoder.layouts(sample, source.images)
            encoded = self.encoder.encode(sample, layouts)
        except DataError as error:
            if not source.skip:
                raise
            return self._unusable(index, error, self._text_of(sample))
        none, _ = self.encoder.blank(0)
        return Item(encoded, none, self.sample_id(index), layouts=layouts)

    def _text_of(self, sample: Sample) -> Encoded | None:
        """A sample whose images cannot be used keeps its text, if that can."""
        try:
            return self.encoder.encode(sample)
        except DataError:
            return None

    def _unusable(self, index: int, error: DataError, encoded: Encoded | None = None) -> Item:
        """Keeps what could be encoded, without labels; otherwise one token stands in for the text."""
        problem = error.problems[0]
        reason = f"{problem.what} ({problem.where})"
        if encoded is None:
            tokenizer = self.encoder.tokenizer
            stand_in = next((t for t in (tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None), 0)
            none, _ = self.encoder.blank(0)
            return Item(Encoded([stand_in], [IGNORE], True, 0), none, self.sample_id(index), reason, number=index)
        unlearnt = replace(encoded, labels=[IGNORE] * len(encoded.labels), n_supervised=0)
        pixels, layouts = self.encoder.blank(len(self._samples[index].images))
        return Item(unlearnt, pixels, self.sample_id(index), reason, layouts, index)
