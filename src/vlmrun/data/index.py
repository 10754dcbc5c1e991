"""Usable records in memory-mapped files: written once, read by every rank and every loader process.

A list of a million records would be parsed and held by each of them. Here one process reads and checks the annotation
files, and writes what is left in the order it will be asked for; the others map the same pages. Free of torch.

    records.bin   every record as a JSON list, one after the other
    ends.npy      where each one ends
    words.npy     words of each one; negative for one without an image
    index.json    sources and counts, and what the files were made from; written last
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import artifact
from vlmrun.data.sample import Sample, Turn

RECORDS, ENDS, WORDS, INDEX = "records.bin", "ends.npy", "words.npy", "index.json"
_VERSION = 2


class Index(Sequence[Sample]):
    """The records of a folder that `write` has filled. May be sent to another process, which maps the files again.

    Attributes:
        names: of the sources that have records: their data entries.
        counts: records of each, in order.
        words: of every record; negative for one without an image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = json.loads((folder / INDEX).read_text("utf-8"))
        self.names: list[str] = [source["name"] for source in described["sources"]]
        self.counts: list[int] = [source["n_records"] for source in described["sources"]]
        self._files: list[str] = [source["file"] for source in described["sources"]]
        self._firsts = np.cumsum([0, *self.counts])
        self._map()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Sample:  # type: ignore[override] # of one number: no slice is asked for
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        first = int(self._ends[index - 1]) if index else 0
        id, images, talk, place, *more = json.loads(self._records[first : int(self._ends[index])])
        system, excluded = more or (None, ())
        pairs = zip(talk[::2], talk[1::2], strict=True)
        turns = tuple(Turn(role, text, number not in excluded) for number, (role, text) in enumerate(pairs))
        return Sample(id, tuple(images), turns, (self._files[self.source(index)], place), system=system)

    def source(self, index: int) -> int:
        """The number of the source that a record comes from."""
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_records", "_ends", "words")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        self._ends = np.load(self.folder / ENDS, mmap_mode="r")
        self.words = np.load(self.folder / WORDS, mmap_mode="r")
        with (self.folder / RECORDS).open("rb") as handle:
            # An empty file cannot be mapped; a dataset is never empty, an index may be.
            self._records = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if len(self._ends) else b""


def write(folder: Path, sources: Iterable[tuple[str, str, Iterable[Sample]]], stamp: Any = None) -> Index:
    """Writes the records of all sources, one at a time, and opens the result.

    Args:
        sources: name, annotation file and usable records of each; one without records is left out.
        stamp: what the records depend on, as JSON values; `whole` compares it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    ends, words = _Column("<i8"), _Column("<i4")
    listed: list[dict[str, Any]] = []
    with ExitStack() as stack:
        path = stack.enter_context(artifact.writing(folder / RECORDS))
        handle = stack.enter_context(path.open("wb"))
        end = 0
        for name, file, samples in sources:
            before = len(ends)
            for sample in samples:
                end += handle.write(_line(sample))
                ends.append(end)
                words.append(_words(sample))
            if len(ends) > before:
                listed.append({"name": name, "file": file, "n_records": len(ends) - before})
    for name, column in ((ENDS, ends), (WORDS, words)):
        with artifact.writing(folder / name) as path, path.open("wb") as handle:
            np.save(handle, column.array())
    artifact.write_json(folder / INDEX, {"version": _VERSION, "sources": listed, "stamp": stamp})
    return Index(folder)


def whole(folder: Path, stamp: Any) -> bool:
    """Whether the folder holds an index of just this."""
    try:
        described = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(described.get("version") == _VERSION and described.get("stamp") == stamp)


class _Column:
    """Numbers that are appended, held as a few arrays instead of a list of objects."""

    _BLOCK = 1 << 16

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._blocks: list[np.ndarray] = []
        self._last: list[int] = []

    def __len__(self) -> int:
        return len(self._blocks) * self._BLOCK + len(self._last)

    def append(self, value: int) -> None:
        self._last.append(value)
        if len(self._last) == self._BLOCK:
            self._blocks.append(np.array(self._last, dtype=self._kind))
            self._last = []

    def array(self) -> np.ndarray:
        return np.concatenate([*self._blocks, np.array(self._last, dtype=self._kind)])


def _line(sample: Sample) -> bytes:
    talk = [word for turn in sample.turns for word in (turn.role, turn.text)]
    line: list[Any] = [sample.id, sample.images, talk, sample.source[1]]
    excluded = [number for number, turn in enumerate(sample.turns) if not turn.supervised]
    if sample.system is not None or excluded:
        line += [sample.system, excluded]
    return json.dumps(line, separators=(",", ":")).encode("ascii")


def _words(sample: Sample) -> int:
    """Words of all turns, whatever the tokenizer; negative without an image."""
    n_words = sum(len(text.split()) for text in (sample.system or "", *(turn.text for turn in sample.turns)))
    return n_words if sample.images else -n_words
