"""The lazy dataset: records are read and checked once, images opened and text encoded when a sample is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import logs
from vlmrun.config.schema import Compat, DataConfig
from vlmrun.data import compat, formats
from vlmrun.data.encode import IGNORE, Encoded, encode, misfit
from vlmrun.data.images import Aspect, ImageLayout, ImageTransform, find_image, open_image
from vlmrun.data.sample import Rejected, Sample, locate_record
from vlmrun.data.templates import Template
from vlmrun.errors import ConfigError, DataError, Problem, suggest

log = logs.get(__name__)

Layouts = tuple[ImageLayout | None, ...]

MAX_LISTED = 20  # problems an error shows; the number of all is told as well


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

    def encode(self, sample: Sample, layouts: Layouts | None = None) -> Encoded:
        """Token ids and labels.

        Args:
            layouts: how each of its images was cut; None: none was.
        """
        each = (None,) * len(sample.images) if layouts is None else layouts
        counts = [self.image_tokens(layout) for layout in each]
        if self.labels_of is not None:
            return compat.encode(
                sample, self.template, self.tokenizer, self.labels_of, image_tokens=counts, max_length=self.max_length
            )
        return encode(sample, self.template, self.tokenizer, image_tokens=counts, max_length=self.max_length)

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
            return self.blank(0), ()
        found = [self._pixels_of(root, name, sample.where) for name in sample.images]
        return np.concatenate([pixels for pixels, _ in found]), tuple(layout for _, layout in found)

    def blank(self, n_images: int) -> np.ndarray:
        """As many empty images."""
        return np.zeros((n_images, 3, *self.image_transform.size), dtype=np.float32)

    def _pixels_of(self, root: Path | None, name: str, where: str) -> tuple[np.ndarray, ImageLayout | None]:
        image = open_image(root, name, where)
        try:
            return self.image_transform.tiles(image, self.aspect)
        except DataError as error:  # the transform knows what is wrong, but not where
            raise DataError([replace(p, where=f"{name}, named in {where}") for p in error.problems]) from error


@dataclass(frozen=True)
class Source:
    """Where a run of samples comes from and how its problems are met."""

    images: Path | None
    skip: bool


class Dataset:
    """Samples of one or several sources, one after the other; usable by loader processes."""

    def __init__(self, samples: Sequence[Sample], sources: Sequence[Source], encoder: Encoder) -> None:
        """Args: sources: one for each sample, the same object for all samples of a source."""
        assert len(samples) == len(sources)
        self._samples = samples
        self._sources = sources
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self._samples)

    def counts(self) -> list[int]:
        """Samples of each source, in order."""
        return [len(list(run)) for _, run in groupby(self._sources, key=id)]

    def lengths(self) -> list[int]:
        """Words of every sample; negative for one without a picture."""
        words = [sum(len(turn.text.split()) for turn in sample.turns) for sample in self._samples]
        return [n if sample.images else -n for n, sample in zip(words, self._samples, strict=True)]

    def sample(self, index: int) -> Sample:
        """The record before encoding."""
        return self._samples[index]

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
        sample, source = self._samples[index], self._sources[index]
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
            return Item(Encoded([stand_in], [IGNORE], True, 0), self.encoder.blank(0), self.sample_id(index), reason)
        unlearnt = replace(encoded, labels=[IGNORE] * len(encoded.labels), n_supervised=0)
        n_images = len(self._samples[index].images)
        return Item(unlearnt, self.encoder.blank(n_images), self.sample_id(index), reason)


def open_datasets(
    data: Mapping[str, DataConfig], names: Sequence[str], *, encoder: Encoder, skipped: Path | None
) -> Dataset:
    """Reads and checks all records of the named data, in order.

    Args:
        data: the job's data entries, paths absolute.
        skipped: file that lists records left out under `on_error: skip`; None (ranks above 0) writes nothing.

    Raises:
        DataError: listing the first problems of all records whose data says `on_error: fail`.
    """
    samples: list[Sample] = []
    sources: list[Source] = []
    wrong: list[Rejected] = []
    left_out: list[Rejected] = []
    for name in names:
        config = _entry(data, name)
        source = Source(None if config.images is None else Path(config.images), config.on_error == "skip")
        read, rejected = _split_misfits(*read_samples(config, as_it_is=encoder.as_upstream), encoder)
        samples += read
        sources += [source] * len(read)
        (left_out if source.skip else wrong).extend(rejected)
    if wrong:
        raise rejection_error(wrong)
    if left_out:
        log.warning("left out %d of %d records (on_error: skip)", len(left_out), len(left_out) + len(samples))
    if left_out and skipped is not None:
        list_skipped(skipped, [record.to_dict() for record in left_out])
    if not samples:
        raise DataError("no usable record in the data", ", ".join(names), "look at skipped.jsonl and at the files")
    return Dataset(samples, sources, encoder)


def read_samples(config: DataConfig, *, as_it_is: bool = False) -> tuple[list[Sample], list[Rejected]]:
    """All records of one data entry, and those that cannot be used: bad ones, and those without their pictures.

    Args:
        as_it_is: for `compat.records`: roles, empty turns and image tags are left to `compat.as_upstream`.
    """
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    if config.images is not None and not Path(config.images).is_dir():
        raise DataError("the image folder does not exist", config.images, "check data.<name>.images")
    for record in formats.reader(config.format, as_it_is=as_it_is)(Path(config.annotations)):
        if isinstance(record, Rejected):
            rejected.append(record)
        else:
            samples.append(record)
    samples, missing = _split_missing(samples, None if config.images is None else Path(config.images))
    return samples, _in_order(rejected + missing)


def rejection_error(rejected: Sequence[Rejected]) -> DataError:
    """One error that lists the first of them and tells how many there are."""
    problems = [record.problem for record in rejected[:MAX_LISTED]]
    if len(rejected) > MAX_LISTED:
        more = Problem(f"{len(rejected) - MAX_LISTED} more bad records ({len(rejected)} in all)", rejected[0].source[0])
        problems.append(replace(more, fix="mend them, or set on_error: skip to leave them out"))
    return DataError(problems)


def list_skipped(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Appends entries to a JSONL file, each once however often a run is resumed."""
    known = set(path.read_text("utf-8").splitlines()) if path.is_file() else set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        for entry in entries:
            line = json.dumps(dict(entry), ensure_ascii=False)
            if line not in known:
                known.add(line)
                handle.write(line + "\n")


def _split_missing(samples: list[Sample], root: Path | None) -> tuple[list[Sample], list[Rejected]]:
    """Moves samples whose pictures do not exist to the rejected ones: now, and not hours into a run.

    A picture costs one look-up however many samples name it, and is not opened: that is still left for its turn.
    """
    problems: dict[str, Problem | None] = {}
    complete: list[Sample] = []
    rejected: list[Rejected] = []
    for sample in samples:
        for name in sample.images:
            if name not in problems:
                problems[name] = _missing(root, name, suggesting=len(rejected) < MAX_LISTED)
        problem = next((found for name in sample.images if (found := problems[name]) is not None), None)
        if problem is None:
            complete.append(sample)
        else:
            what = f"{problem.what} ({problem.where})" if problem.where else problem.what
            rejected.append(Rejected(sample.id, sample.source, what, problem.fix))
    return complete, rejected


def _missing(root: Path | None, name: str, *, suggesting: bool) -> Problem | None:
    """What keeps a picture from being found; the careful search is only for those that a plain look-up misses."""
    try:
        if root is not None and (root / name).is_file():
            return None
    except OSError:
        pass  # the search says what it is
    try:
        find_image(root, name, suggesting=suggesting)
    except DataError as error:
        return error.problems[0]
    return None


def _in_order(rejected: list[Rejected]) -> list[Rejected]:
    return sorted(rejected, key=lambda record: record.source[1])


def _split_misfits(
    samples: list[Sample], rejected: list[Rejected], encoder: Encoder
) -> tuple[list[Sample], list[Rejected]]:
    """Moves samples that the template cannot show to the rejected ones: now, and not hours into a run."""
    fitting = []
    for sample in samples:
        if encoder.as_upstream:
            try:
                sample = compat.as_upstream(sample, encoder.template, encoder.labels_of)
            except DataError as error:
                rejected.append(Rejected(sample.id, sample.source, error.problems[0].what, error.problems[0].fix))
                continue
        problem = misfit(sample, encoder.template)
        if problem is None:
            fitting.append(sample)
        else:
            rejected.append(Rejected(sample.id, sample.source, problem.what, problem.fix))
    return fitting, _in_order(rejected)


def _entry(data: Mapping[str, DataConfig], name: str) -> DataConfig:
    if name not in data:
        raise ConfigError(f"no data named {name!r}", "stage.<name>.data", suggest(name, data, noun="data entries"))
    return data[name]
