"""The lazy dataset: records are read and checked once, images opened and text encoded when a sample is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import logs
from vlmrun.arch.tiles import n_tiles
from vlmrun.config import derived
from vlmrun.config.schema import Aspect, Compat, DataConfig, Slices
from vlmrun.data import index
from vlmrun.data.compat import minicpm
from vlmrun.data.compat import settings as compat
from vlmrun.data.encode import Encoded, encode, misfit
from vlmrun.data.images import grid as slices
from vlmrun.data.images.cache import Fitted, PictureCache
from vlmrun.data.images.open import ImageLayout, ImageTransform, find_image, image_size, load_image
from vlmrun.data.images.patch_strips import joined
from vlmrun.data.index import Index
from vlmrun.data.reading import list_skipped, rejection_error, usable
from vlmrun.data.sample import Question, Rejected, Sample, locate_record
from vlmrun.data.shards import keys
from vlmrun.data.templates import Template
from vlmrun.errors import ConfigError, DataError, suggest
from vlmrun.ids import IGNORE

log = logs.get(__name__)

Layouts = tuple[ImageLayout | None, ...]


@dataclass(frozen=True)
class Item:
    """A sample ready to be put into a batch.

    Args:
        pixels: all tiles of all images in order, [n_tiles, 3, height, width], float32.
        layouts: how each image was cut; None: none was, and every row of `pixels` is an image.
        skipped: why nothing of it is learnt (`on_error: skip`), else None.
    """

    encoded: Encoded
    pixels: np.ndarray
    id: str
    skipped: str | None = None
    layouts: Layouts | None = None

    @property
    def each_layout(self) -> Layouts:
        """One layout for every image."""
        return (None,) * len(self.pixels) if self.layouts is None else self.layouts


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
    draft: int | None = None  # `images.load_image`
    pictures: PictureCache | None = None
    slices: Slices | None = None

    def encode(self, sample: Sample, layouts: Layouts | None = None) -> Encoded:
        """Token ids and labels.

        Args:
            layouts: how each of its images was cut; None: none was.
        """
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
            return compat.encode(
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
    def labels_of(self) -> compat.Project | None:
        """The project whose label arithmetic is reproduced, if any."""
        return None if self.compat is None else self.compat.labels

    @property
    def as_upstream(self) -> bool:
        """Whether records are taken as upstream takes them."""
        return self.compat is not None and self.compat.records

    def pixels(self, sample: Sample, root: Path | None) -> tuple[np.ndarray, Layouts]:
        """Pixels of all tiles of all its images, [n_tiles, 3, height, width], and how each image was cut."""
        if not sample.images:
            return self.blank(0)
        found = [self._pixels_of(root, name, sample.where) for name in sample.images]
        return joined([pixels for pixels, _ in found]), tuple(layout for _, layout in found)

    def layouts(self, sample: Sample, root: Path | None) -> Layouts:
        """How each of its images is cut, known from their sizes; nothing is read of images that are not."""
        if self.aspect not in ("anyres", "slices"):
            return (None,) * len(sample.images)
        return tuple(self.image_transform.layout(image_size(root, name, sample.where)) for name in sample.images)

    def blank(self, n_images: int) -> tuple[np.ndarray, Layouts]:
        """As many empty images, and how they are cut."""
        return self.image_transform.blank(n_images, self.aspect)

    def _pixels_of(self, root: Path | None, name: str, where: str) -> tuple[np.ndarray, ImageLayout | None]:
        picture = find_image(root, name, where)

        def make() -> Fitted:
            return self.image_transform.fit(load_image(picture, where, draft=self.draft), self.aspect)

        try:
            fitted, layout = make() if self.pictures is None else self.pictures.get(picture, make)
            return self.image_transform.scaled(fitted, layout, self.aspect)
        except DataError as error:  # the transform knows what is wrong, but not where
            raise DataError(
                [replace(p, where=p.where or f"{name}, named in {where}") for p in error.problems]
            ) from error


@dataclass(frozen=True)
class Source:
    """Where a run of samples comes from and how its problems are met."""

    images: Path | None
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
        """Words of every sample; negative for one without a picture."""
        found: list[int] = self._samples.words.tolist()
        return found

    def places(self) -> list[int]:
        """The number of every sample's record in its file, or in the line of all shards."""
        return [self._samples[index].source[1] for index in range(len(self))]

    def has_pictures(self) -> bool:
        """Whether any sample has one."""
        return bool((self._samples.words > 0).any())

    def sample(self, index: int) -> Sample:
        """The record before encoding."""
        return self._samples[index]

    def name(self, index: int) -> str:
        """The data entry that a sample comes from."""
        return self._samples.names[self._samples.source(index)]

    def sample_id(self, index: int) -> str:
        """The id a person can find the record by: its own, or file and index."""
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
        return Item(encoded, pixels, self.sample_id(index), skipped, layouts)

    def text(self, index: int) -> Item:
        """One sample without its pixels, as long as `dataset[index]`; its pictures are not decoded, only measured.

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
            return Item(Encoded([stand_in], [IGNORE], True, 0), none, self.sample_id(index), reason)
        unlearnt = replace(encoded, labels=[IGNORE] * len(encoded.labels), n_supervised=0)
        pixels, layouts = self.encoder.blank(len(self._samples[index].images))
        return Item(unlearnt, pixels, self.sample_id(index), reason, layouts)


def open_datasets(
    data: Mapping[str, DataConfig],
    names: Sequence[str],
    *,
    encoder: Encoder,
    skipped: Path | None,
    folder: Path,
) -> Dataset:
    """Reads and checks all records of the named data, in order, unless `folder` holds their index already.

    Args:
        data: the job's data entries, paths absolute.
        skipped: file that lists records left out under `on_error: skip`; None writes nothing.
        folder: for the index (`data/index.py`); of several ranks one makes it, the others open it.

    Raises:
        DataError: listing the first problems of all records whose data says `on_error: fail`.
    """
    entries = [(name, _entry(data, name)) for name in names]
    stamp = _stamp(entries, encoder)
    if not index.whole(folder, stamp):
        _build(entries, encoder, skipped, folder, stamp)
    samples = index.Index(folder)
    configs = [data[name] for name in samples.names]
    sources = [Source(derived.image_root(c), c.on_error == "skip") for c in configs]
    return Dataset(samples, sources, encoder)


def _build(
    entries: Sequence[tuple[str, DataConfig]], encoder: Encoder, skipped: Path | None, folder: Path, stamp: Any
) -> None:
    """Writes the index of what can be used; nothing when something may not be left out."""
    wrong: list[Rejected] = []
    left_out: list[Rejected] = []

    def sources() -> Iterator[tuple[str, str, Iterator[Sample]]]:
        for name, config in entries:
            rejected = left_out if config.on_error == "skip" else wrong
            check = partial(_fitting, encoder)
            yield name, config.annotations, usable(config, rejected, check, as_it_is=encoder.as_upstream)
        # Before the index is called whole.
        if wrong:
            raise rejection_error(wrong)

    made = index.write(folder, sources(), stamp)
    if left_out:
        log.warning("left out %d of %d records (on_error: skip)", len(left_out), len(left_out) + len(made))
        if skipped is not None:
            list_skipped(skipped, [record.to_dict() for record in left_out])
    if not made:
        names = ", ".join(name for name, _ in entries)
        raise DataError("no usable record in the data", names, "look at skipped.jsonl and at the files")


def _fitting(encoder: Encoder, sample: Sample) -> Sample | Rejected:
    """Finds what the template cannot show: now, and not hours into a run. Questions get their answers."""
    if isinstance(sample, Question):
        sample = sample.answered
    if encoder.as_upstream:
        try:
            sample = compat.as_upstream(sample, encoder.template, encoder.labels_of)
        except DataError as error:
            return Rejected(sample.id, sample.source, error.problems[0].what, error.problems[0].fix)
    if encoder.compat is not None and encoder.compat.llava_prompt is not None:
        sample = keys.as_pai(sample, encoder.compat.llava_prompt)
    problem = misfit(sample, encoder.template)
    return sample if problem is None else Rejected(sample.id, sample.source, problem.what, problem.fix)


def _stamp(entries: Sequence[tuple[str, DataConfig]], encoder: Encoder) -> Any:
    """All that decides which records are in an index, and how; as JSON gives it back."""
    quirks = None if encoder.compat is None else encoder.compat.model_dump()
    sources = [
        [name, config.model_dump(exclude={"about"}), _state(Path(config.annotations))] for name, config in entries
    ]
    return json.loads(json.dumps([sources, encoder.template.to_dict(), quirks]))


def _state(path: Path) -> Any:
    """Size and time of a file, or of all files of a folder; nothing for one that is missing: the reader will tell."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): _state(file) for file in sorted(path.rglob("*")) if file.is_file()}
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _entry(data: Mapping[str, DataConfig], name: str) -> DataConfig:
    if name not in data:
        raise ConfigError(f"no data named {name!r}", "stage.*.data", suggest(name, data, noun="data entries"))
    return data[name]
