"""Shards -> samples, one at a time; images stay where they are and are named by their place. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.sample import Rejected, Sample
from vlmrun.data.shards import fields, metadata
from vlmrun.data.shards.tar import Entry, Place, entries
from vlmrun.errors import DataError

log = logs.get(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm")
_LAST_NAMED = 2  # turns that a question and its answer are

# key, turns as LLaVA writes them or a record that has them, the image's place, source -> sample
Parse = Callable[[str, Any, str | None, tuple[str, int]], Sample | Rejected]
ParseEntry = Callable[["Parts", tuple[str, int]], Sample | Rejected]


class Parts:
    """The parts of one sample; contents are read when they are asked for."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder = folder
        self.key = entry.key
        self.places: Mapping[str, Place] = entry.parts
        self._contents: dict[str, bytes] = {}

    def content(self, name: str) -> bytes:
        """The bytes of a part."""
        if name not in self._contents:
            self._contents[name] = self.places[name].read(self.folder / self.places[name].shard)
        return self._contents[name]

    def turns(self) -> Any:
        """The turns in `json`."""
        found = self.record()
        return found.get("conversations") if isinstance(found, dict) else found

    def record(self) -> Any:
        """What `json` holds: turns, or a record that has them."""
        if "json" not in self.places:
            raise DataError("it has no json", fix=f"its parts are {', '.join(self.places) or 'none'}")
        try:
            return json.loads(self.content("json"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"its json cannot be read: {error}", fix="convert the record again") from error


def samples(
    folder: Path, shards: Sequence[str], parse: ParseEntry, *, counts: Mapping[str, int] | None = None
) -> Iterator[Sample | Rejected]:
    """Yields the samples of shards in order, numbered through, bad ones as rejections.

    Args:
        counts: samples that each shard should have.
    """
    seen: set[str] = set()
    number = 0
    for shard in shards:
        found = list(entries(folder, shard))
        metadata.check_index(folder, shard, found)
        _check_count(folder, shard, len(found), counts)
        for entry in found:
            yield _sample(folder, entry, seen, parse, (str(folder), number))
            number += 1


def conversation(parse: Parse) -> ParseEntry:
    """Samples with all their turns and at most one image."""

    def of(parts: Parts, source: tuple[str, int]) -> Sample | Rejected:
        images = [name for name in parts.places if name in PICTURES]
        if len(images) > 1:
            what = f"it has several images: {', '.join(images)}"
            return Rejected(parts.key, source, what, f"data.<name>.fields={{image: {images[0]}, ...}}")
        place = str(parts.places[images[0]]) if images else None
        return parse(parts.key, parts.record(), place, source)

    return of


def mapped(field_map: Mapping[str, str | None], parse: Parse, where: str) -> ParseEntry:
    """Samples of a question and an answer, which a field map names; further turns are counted in the log."""
    paths = fields.parse(field_map, where)
    if "answer_weights" in paths:
        fix = "leave it out, and name one answer: answers: 'json[1][value]'"
        raise DataError("answers drawn by weight would be another text in every pass", where, fix)

    def of(parts: Parts, source: tuple[str, int]) -> Sample | Rejected:
        image, context, answer = (fields.value(paths[name], parts.places, parts.content) for name in fields.FIELDS)
        answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        if not isinstance(context, str) or not isinstance(answer, str):
            what = f"the question is a {type(context).__name__} and the answer a {type(answer).__name__}, not text"
            return Rejected(parts.key, source, what, "change data.<name>.fields")
        place = parts.places.get(image) if isinstance(image, str) else None
        if place is None:
            return Rejected(parts.key, source, "`image` leads to no part of the sample", "data.<name>.fields.image=jpg")
        turns = [{"from": "human", "value": context}, {"from": "gpt", "value": answer}]
        return parse(parts.key, turns, str(place), source)

    return of


def _sample(
    folder: Path, entry: Entry, seen: set[str], parse: ParseEntry, source: tuple[str, int]
) -> Sample | Rejected:
    if entry.repeated:
        what = f"`id` is used twice: {entry.repeated[0]} stands in the shard more than once"
        return Rejected(entry.key, source, what, "give every record its own id, and convert again")
    if entry.key in seen:
        what = "`id` is used twice: an earlier sample has this key"
        return Rejected(entry.key, source, what, "give every record its own id, and convert again")
    seen.add(entry.key)
    try:
        return parse(Parts(folder, entry), source)
    except DataError as error:
        problem = error.problems[0]
        return Rejected(entry.key, source, problem.what, problem.fix)


def _check_count(folder: Path, shard: str, n: int, counts: Mapping[str, int] | None) -> None:
    if counts is not None and counts.get(shard) != n:
        raise DataError(
            f"the shard has {n} samples, the metadata tell of {counts.get(shard, 'none')}",
            str(folder / shard),
            "run `energon prepare` again, or convert again",
        )
