"""The records of a stage's data: read and checked once, then opened as a dataset from their index."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.config.schema import DataConfig
from vlmrun.data import index
from vlmrun.data.compat import settings as compat
from vlmrun.data.dataset import Dataset, Source
from vlmrun.data.encoder import Encoder
from vlmrun.data.fits import misfit
from vlmrun.data.images.finding import folder_of
from vlmrun.data.reading import list_skipped, rejection_error, usable
from vlmrun.data.sample import Question, Rejected, Sample
from vlmrun.data.shards import keys
from vlmrun.errors import ConfigError, DataError, suggest

log = logs.get(__name__)


def open_datasets(
    data: Mapping[str, DataConfig],
    names: Sequence[str],
    *,
    encoder: Encoder,
    skipped: Path | None,
    folder: Path,
    first: int | None = None,
) -> Dataset:
    """Reads and checks all records of the named data, in order, unless `folder` holds their index already.

    Args:
        data: the job's data entries, paths absolute.
        skipped: file that lists records left out under `on_error: skip`; None writes nothing.
        folder: for the index (`data/index.py`); of several ranks one makes it, the others open it.
        first: only the first N usable records, of all sources together; what comes after them is not read.

    Raises:
        DataError: listing the first problems of all records whose data says `on_error: fail`.
    """
    entries = [(name, _entry(data, name)) for name in names]
    stamp = _stamp(entries, encoder) if first is None else [_stamp(entries, encoder), first]
    if not index.whole(folder, stamp):
        _build(entries, encoder, skipped, (folder, stamp), first)
    samples = index.Index(folder)
    configs = [data[name] for name in samples.names]
    sources = [Source(folder_of(c), c.on_error == "skip") for c in configs]
    return Dataset(samples, sources, encoder)


def _build(
    entries: Sequence[tuple[str, DataConfig]],
    encoder: Encoder,
    skipped: Path | None,
    place: tuple[Path, Any],
    first: int | None,
) -> None:
    """Writes the index of what can be used to a folder, with its stamp; nothing when something may not be left out."""
    wrong: list[Rejected] = []
    left_out: list[Rejected] = []

    def sources() -> Iterator[tuple[str, str, Iterator[Sample]]]:
        left = first
        for name, config in entries:
            rejected = left_out if config.on_error == "skip" else wrong
            found = usable(config, rejected, partial(_fitting, encoder), as_it_is=encoder.as_upstream)
            numbers = itertools.count()  # one for each record that is taken
            yield name, config.annotations, (sample for sample, _ in zip(itertools.islice(found, left), numbers))
            left = None if left is None else left - next(numbers)
        # Before the index is called whole.
        if wrong:
            raise rejection_error(wrong)

    made = index.write(place[0], sources(), place[1])
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
        if not sample.answer:
            return Rejected(sample.id, sample.source, "the question has no answer to learn", "add its `answer`")
        if sample.others:
            what = f"the question has {len(sample.others) + 1} reference answers, and one can be trained"
            return Rejected(sample.id, sample.source, what, "keep one answer")
        sample = sample.answered
    if encoder.as_upstream:
        try:
            sample = compat.as_upstream(sample, encoder.template, encoder.labels_of)
        except DataError as error:
            return Rejected(sample.id, sample.source, error.problems[0].what, error.problems[0].fix)
    if encoder.compat is not None and encoder.compat.llava_prompt is not None:
        sample = keys.as_pai(sample, encoder.compat.llava_prompt)
    problem = misfit(sample, encoder.template) or compat.excluded(sample, encoder.labels_of)
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
