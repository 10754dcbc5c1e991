"""Tar shards -> LLaVA JSON and a folder of images: the reverse of `write`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.data.prepare.folder import appearing
from vlmrun.data.shards import metadata
from vlmrun.data.shards.reading import PICTURES, Parts
from vlmrun.data.shards.tar import entries
from vlmrun.errors import DataError

log = logs.get(__name__)

RECORDS, IMAGES = "records.json", "images"
_EVERY_SECONDS = 5.0


def unpack(folder: Path, destination: Path) -> int:
    """Writes `records.json` and `images/` of all shards below a folder and returns the number of records.

    Args:
        destination: must not exist; it appears when all is written.

    Raises:
        DataError: for a damaged shard, a key that is used twice, or a sample without turns.
    """
    told, n_records = time.monotonic(), 0
    with appearing(destination) as partial, (partial / RECORDS).open("w", encoding="utf-8") as handle:
        for parts in _samples(folder):
            record = {"id": parts.key} | _picture(parts, partial) | {"conversations": parts.turns()}
            handle.write((",\n" if n_records else "[\n") + json.dumps(record, ensure_ascii=False))
            n_records += 1
            if time.monotonic() - told > _EVERY_SECONDS:
                told = time.monotonic()
                log.info("%s records", f"{n_records:,}")
        handle.write("\n]\n" if n_records else "[]\n")
    return n_records


def _samples(folder: Path) -> Iterator[Parts]:
    seen: set[str] = set()
    for shard in metadata.shards_in(folder):
        for entry in entries(folder, shard):
            if entry.repeated or entry.key in seen:
                raise DataError(
                    f"key {entry.key!r} is used twice", str(folder / shard), "give every sample its own key"
                )
            seen.add(entry.key)
            yield Parts(folder, entry)


def _picture(parts: Parts, destination: Path) -> dict[str, Any]:
    """Writes a sample's image, if it has one, and names it."""
    suffix = next((name for name in parts.places if name in PICTURES), None)
    if suffix is None:
        return {}
    name = f"{IMAGES}/{parts.key}.{suffix}"
    path = destination / name
    if not path.resolve().is_relative_to((destination / IMAGES).resolve()):
        raise DataError(f"key {parts.key!r} leaves the folder", str(parts.folder), "name the sample otherwise")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parts.content(suffix))
    return {"image": name}
