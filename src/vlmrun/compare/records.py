"""Data of two sides: files, counts, and which records one has and the other does not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.compare.sides import Side

_MOST_BYTES = 1 << 30  # of a file whose records are compared; a larger one is compared by its digest
_SHOWN = 5  # ids of records that are listed


@dataclass(frozen=True)
class Read:
    """What one side reads under a name.

    Attributes:
        digest: SHA-256 of the annotation file; None when it is not there any more, or is a folder.
        records: how often each record occurs, by the digest of its content; None when they are not compared.
        ids: the id of each record, or its beginning where it has none.
    """

    file: Path
    digest: str | None
    records: Counter[str] | None
    ids: dict[str, str]


@dataclass(frozen=True)
class Changed:
    """Data that differs between the sides.

    Attributes:
        counts: records of each; None where they are not known.
        added, removed: how many records only the second, and only the first, has; None where they are not known.
        shown: ids of some of them, `+id` and `-id`.
        note: why they are not compared.
    """

    name: str
    files: tuple[str, str]
    counts: tuple[int | None, int | None]
    added: int | None
    removed: int | None
    shown: list[str]
    note: str


def changed(first: Side, second: Side) -> list[Changed]:
    """Every name under which both sides read different data; names of one side are among its values."""
    ours, theirs = _files(first), _files(second)
    found = []
    for name in ours:
        if name not in theirs or ours[name] == theirs[name]:
            continue
        pair = _read(ours[name]), _read(theirs[name])
        if pair[0].digest is None or pair[0].digest != pair[1].digest:
            found.append(_compare(name, *pair))
    return found


def _compare(name: str, first: Read, second: Read) -> Changed:
    files = str(first.file), str(second.file)
    if first.records is None or second.records is None:
        gone = [str(side.file) for side in (first, second) if not side.file.exists()]
        note = (
            f"not there any more: {', '.join(gone)}" if gone else "records are not compared: not a JSON file under 1 GB"
        )
        counts = tuple(None if side.records is None else side.records.total() for side in (first, second))
        return Changed(name, files, (counts[0], counts[1]), None, None, [], note)
    added, removed = second.records - first.records, first.records - second.records
    signed = [(f"+{second.ids[each]}") for each in added][:_SHOWN] + [f"-{first.ids[each]}" for each in removed][
        :_SHOWN
    ]
    counts = first.records.total(), second.records.total()
    return Changed(name, files, counts, added.total(), removed.total(), signed, "")


def _files(side: Side) -> dict[str, Path]:
    """Annotation files by the name of their data, as the stages found them."""
    found: dict[str, Path] = {}
    for made in side.stages.values():
        for name, data in ((made.job or {}).get("data") or {}).items():
            if isinstance(data, dict) and isinstance(data.get("annotations"), str):
                found.setdefault(name, Path(data["annotations"]))
    return found


def _read(file: Path) -> Read:
    if not file.is_file():
        return Read(file, None, None, {})
    digest = artifact.digest(file)
    if file.stat().st_size > _MOST_BYTES or file.suffix not in (".json", ".jsonl"):
        return Read(file, digest, None, {})
    records: Counter[str] = Counter()
    ids: dict[str, str] = {}
    try:
        for record in _parsed(file):
            text = json.dumps(record, sort_keys=True, separators=(",", ":"))
            key = hashlib.sha256(text.encode()).hexdigest()
            records[key] += 1
            ids[key] = _id(record, text)
    except ValueError:  # no JSON, or not in UTF-8
        return Read(file, digest, None, {})
    return Read(file, digest, records, ids)


def _parsed(file: Path) -> Iterator[Any]:
    if file.suffix == ".json":
        content = json.loads(file.read_text("utf-8"))
        yield from content if isinstance(content, list) else [content]
        return
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _id(record: Any, text: str) -> str:
    named = record.get("id", record.get("question_id")) if isinstance(record, dict) else None
    return text[:40] if named is None else str(named)
