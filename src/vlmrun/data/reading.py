"""Annotation files -> usable samples, one at a time; what cannot be used is an error, or counted and listed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmrun import jsonl, logs
from vlmrun.config.schema import DataConfig
from vlmrun.data import formats
from vlmrun.data.formats.image_marks import as_words
from vlmrun.data.formats.values import whole
from vlmrun.data.images.finding import ImageFolder, find_image, folder_of
from vlmrun.data.sample import Rejected, Sample
from vlmrun.errors import DataError, Problem

log = logs.get(__name__)

MAX_LISTED = 20  # problems an error shows; the number of all is given as well
_SECONDS_BETWEEN_LINES = 5.0

Check = Callable[[Sample], Sample | Rejected]


def usable(
    config: DataConfig, rejected: list[Rejected], check: Check | None = None, *, as_it_is: bool = False
) -> Iterator[Sample]:
    """Yields the samples of one data entry that can be used, and appends the others to `rejected`, in order.

    Args:
        check: what else a sample must stand; it may hand back a changed one.
        as_it_is: for `compat.records`: roles, empty turns and image tags are left to `compat.as_upstream`.
    """
    folder = folder_of(config)
    if folder is not None and not folder.root.is_dir():
        raise DataError("the image folder does not exist", str(folder.root), "check data.<name>.images")
    images = ImageCheck(folder)
    n_marked, first_marked = 0, ""
    spoken = time.monotonic()
    records = formats.of(config, as_it_is=as_it_is)
    for n_read, record in enumerate(records, start=1):
        if time.monotonic() - spoken > _SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            log.info("%s: %s records read", config.annotations, f"{n_read:,}")
        found = record if isinstance(record, Rejected) else images.check(record, len(rejected) < MAX_LISTED)
        if check is not None and isinstance(found, Sample):
            found = check(found)
        if isinstance(found, Rejected):
            rejected.append(found)
            continue
        if marks := as_words(found):
            n_marked += 1
            first_marked = first_marked or f"{', '.join(marks)} in {found.where}"
        yield found
    if n_marked:
        log.warning("image marks in %d records are taken as words, first %s", n_marked, first_marked)


def rejection_error(rejected: Sequence[Rejected]) -> DataError:
    """One error that lists the first of them and tells how many there are."""
    problems = [record.problem for record in rejected[:MAX_LISTED]]
    if len(rejected) > MAX_LISTED:
        more = Problem(f"{len(rejected) - MAX_LISTED} more bad records ({len(rejected)} in all)", rejected[0].source[0])
        problems.append(replace(more, fix="fix them, or set on_error: skip to leave them out"))
    return DataError(problems)


def list_skipped(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Appends entries to a JSONL file, each once however often a run is resumed."""
    known = set(jsonl.lines(path))
    torn = bool(known) and not path.read_bytes().endswith(b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        if torn:  # by a kill
            handle.write("\n")
        for entry in entries:
            line = whole(json.dumps(dict(entry), ensure_ascii=False))
            if line not in known:
                known.add(line)
                handle.write(line + "\n")


class ImageCheck:
    """Finds samples whose images do not exist: now, and not hours into a run.

    An image costs one look-up however many samples name it, and is not opened: that is still left for its turn.
    """

    def __init__(self, folder: ImageFolder | None) -> None:
        self._folder = folder
        self._problems: dict[str, Problem | None] = {}

    def check(self, sample: Sample, suggesting: bool) -> Sample | Rejected:
        """The sample, or what is wrong with its images; with the nearest name when `suggesting`."""
        for name in sample.images:
            if name not in self._problems:
                self._problems[name] = self._problem(name, suggesting=suggesting)
        problem = next((found for name in sample.images if (found := self._problems[name]) is not None), None)
        if problem is None:
            return sample
        what = f"{problem.what} ({problem.where})" if problem.where else problem.what
        return Rejected(sample.id, sample.source, what, problem.fix)

    def _problem(self, name: str, *, suggesting: bool) -> Problem | None:
        """What keeps an image from being found, by the search that its turn comes to as well."""
        try:
            find_image(self._folder, name, suggesting=suggesting)
        except DataError as error:
            return error.problems[0]
        return None
