"""What is wrong with a file of training records, found before anything is trained. Streams; loads no torch.

A record is looked at once. Only hashes are kept of it (8 bytes for its id, 8 for what it says), so a file of a million
records takes little more memory than one of ten. The first images are decoded, of the others the header is read.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun.data import formats
from vlmrun.data.encode import encode
from vlmrun.data.findings import Finding, Tally, Wrong, kind_of
from vlmrun.data.fits import misfit
from vlmrun.data.formats.image_marks import as_words
from vlmrun.data.images.examining import N_DECODED, Examiner, Size
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.seeing import ON_WHITE, View
from vlmrun.data.marks import COMMON_MARKS
from vlmrun.data.sample import IMAGE_TAG, Question, Rejected, Sample
from vlmrun.data.templates import Template
from vlmrun.errors import DataError
from vlmrun.ids import IMAGE_TOKEN

_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Measure:
    """How long a record may be, and what its images take of that."""

    template: Template
    tokenizer: Any
    image_tokens: Callable[[tuple[int, int] | None], int]  # of an image of this width and height; None: not looked at
    max_length: int


@dataclass(frozen=True)
class Rules:
    """What is looked for besides the form of the records.

    Args:
        split, fields, ignore_keys: as in a data entry.
        images: where images are; None: images are not looked for.
        view: how they are seen.
        n_decoded: images that are decoded; None: all.
        template: one that all records must fit.
        measure: None: lengths are not known.
        marks: strings that must not stand in a text.
        records: how many there should be.
        limit: records looked at; None: all.
    """

    format: str = "llava"
    split: str | None = None
    fields: Mapping[str, str | None] | None = None
    ignore_keys: Sequence[str] = ()
    images: ImageFolder | None = None
    view: View = ON_WHITE
    n_decoded: int | None = N_DECODED
    template: Template | None = None
    measure: Measure | None = None
    marks: tuple[str, ...] = COMMON_MARKS
    records: int | None = None
    limit: int | None = None


def rules_of(options: Mapping[str, Any]) -> Rules:
    """What `data lint FILE` asks, from the words of the command line, without template and tokenizer."""
    return Rules(
        format=options["format"],
        split=options["split"],
        ignore_keys=options["ignore_keys"],
        images=None if options["images"] is None else ImageFolder(options["images"], tuple(options["image_root"])),
        n_decoded=options["decode"],
        limit=options["limit"],
    )


def lint(path: Path, rules: Rules, tally: Tally | None = None) -> Iterator[Finding]:
    """Yields every problem of a file: those of a record in order, then duplicates, then the number of records.

    Args:
        tally: given the number of records at the end.

    Raises:
        DataError: when the file does not exist, or the image folder.
    """
    if rules.images is not None and not rules.images.root.is_dir():
        fix = "check --images, or data.<name>.images"
        raise DataError("the image folder does not exist", str(rules.images.root), fix)
    linter = _Linter(path, rules)
    yield from linter.records()
    yield from linter.duplicates()
    if tally is not None:
        tally.n_records += linter.n_records
        tally.n_by_header += 0 if linter.images is None else linter.images.n_by_header
    if rules.records is not None and rules.limit is None and linter.n_records != rules.records:
        yield Finding("count", str(path), None, "", f"{linter.n_records} records, {rules.records} are expected")


class _Linter:
    """Keeps what must be remembered from record to record."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self.path = path
        self.rules = rules
        self.n_records = 0
        self._ids, self._contents = array("Q"), array("Q")
        self.images = None if rules.images is None else Examiner(rules.images, rules.view, rules.n_decoded)

    def _read(self) -> Iterator[Sample | Rejected]:
        rules = self.rules
        read = formats.reader(rules.format, split=rules.split, fields=rules.fields, ignore_keys=rules.ignore_keys)
        return read(self.path)

    def records(self) -> Iterator[Finding]:
        source = self._read()
        try:
            for record in source:
                if self.n_records == self.rules.limit:
                    return
                self.n_records += 1
                self._remember(record)
                yield from self._judge(record)
        except DataError as error:
            if not self.path.exists():
                raise
            yield Finding("malformed", str(self.path), self.n_records, "", error.problems[0].what)

    def duplicates(self) -> Iterator[Finding]:
        """Goes over the file again for their ids, if there are any."""
        first_id, first_content = earlier(self._ids), earlier(self._contents)
        if not ((first_id >= 0).any() or (first_content >= 0).any()):
            return
        last = int(np.flatnonzero((first_id >= 0) | (first_content >= 0))[-1])
        for index, record in enumerate(self._read()):
            if index > last:
                return
            for kind, first in (("duplicate_id", first_id), ("duplicate_record", first_content)):
                if first[index] >= 0:
                    yield Finding(kind, str(self.path), index, record.id, f"like record {first[index]}")

    def _remember(self, record: Sample | Rejected) -> None:
        """Hashes of id and content; what has none gets the number 0, which equals nothing."""
        if isinstance(record, Rejected):
            self._ids.append(0)
            self._contents.append(0)
            return
        self._ids.append(_hash(record.id) if record.id else 0)
        answers = [record.answer, *record.others] if isinstance(record, Question) else [""]
        said = [record.system or "", *(turn.text for turn in record.turns)]
        self._contents.append(_hash("\x1f".join([*record.images, "", *said, *answers])))

    def _judge(self, record: Sample | Rejected) -> Iterator[Finding]:
        source, index = record.source
        found = [Wrong(kind_of(record.what), record.what)] if isinstance(record, Rejected) else self._of_sample(record)
        yield from (Finding(wrong.kind, source, index, record.id, wrong.what) for wrong in found)

    def _of_sample(self, sample: Sample) -> Iterator[Wrong]:
        for number, turn in enumerate(sample.turns):
            marks = [repr(mark) for mark in self.rules.marks if mark in turn.text]
            if marks:
                yield Wrong("special_text", f"message {number} contains {', '.join(marks)}")
        for number, turn in enumerate(sample.turns):
            if sample.images and turn.role == "assistant" and IMAGE_TAG in turn.text:
                yield Wrong("placeholders", f"message {number} is an answer with an {IMAGE_TAG} tag")
        if taken := as_words(sample):
            yield Wrong("placeholders", f"image marks in the text are taken as words: {', '.join(taken)}")
        looked: list[Size | Wrong] = []
        for name in sample.images if self.images is not None else ():
            assert self.images is not None
            seen, notes = self.images.look(name)
            looked.append(seen)
            yield from notes
        yield from dict.fromkeys(wrong for wrong in looked if isinstance(wrong, Wrong))
        template = self.rules.measure.template if self.rules.measure else self.rules.template
        problem = misfit(sample, template) if template and not isinstance(sample, Question) else None
        if problem is not None:
            yield Wrong("template", problem.what)
        elif self.rules.measure is not None and not isinstance(sample, Question):
            sizes = [None if isinstance(seen, Wrong) else seen for seen in looked] or [None] * len(sample.images)
            yield from _lengths(sample, self.rules.measure, sizes)


def earlier(hashes: array[int]) -> np.ndarray:
    """For every place the first place of an equal number, -1 where it is the first itself or the number is 0."""
    numbers = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    starts = np.maximum.accumulate(np.where(is_new, np.arange(len(ordered)), 0))
    first = np.full(len(numbers), -1, dtype=np.int64)
    repeated = ~is_new & (ordered != 0)
    first[order[repeated]] = order[starts[repeated]]
    return first


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def _lengths(sample: Sample, measure: Measure, sizes: Sequence[tuple[int, int] | None]) -> Iterator[Wrong]:
    counts = [measure.image_tokens(size) for size in sizes]
    arguments = (sample, measure.template, measure.tokenizer)
    try:
        if not encode(*arguments, image_tokens=counts, max_length=measure.max_length).truncated:
            return
        kind = "too_long"
    except DataError:
        kind = "not_learnt"
    try:
        ids = encode(*arguments, image_tokens=counts, max_length=_UNLIMITED).input_ids
    except DataError as error:  # nothing is supervised at any length
        yield Wrong("not_learnt", error.problems[0].what)
        return
    n_images = sum(token == IMAGE_TOKEN for token in ids)
    length = len(ids) - n_images + sum(counts)
    yield Wrong(kind, f"{length} tokens, {sum(counts)} of them of images; {measure.max_length} fit")
