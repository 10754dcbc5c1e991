"""megatron-energon's data sets of questions about images: shards with a `.nv-meta` folder of version 4 or 7."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vlmrun.data.formats.wds import parse
from vlmrun.data.sample import Rejected, Sample
from vlmrun.data.shards import metadata, reading


def read(
    path: Path, *, fields: Mapping[str, str | None] | None = None, split: str = "train"
) -> Iterator[Sample | Rejected]:
    """Yields every sample of one part of the split, or a rejection that says what is wrong with it.

    Args:
        fields: a field map in place of the one in dataset.yaml.
        split: train, val or test.

    Raises:
        DataError: for metadata that are missing, damaged or of other shards, an empty part, and damaged shards.
    """
    shards = metadata.split(path, split)
    described = metadata.field_map(path) if fields is None else fields
    parse_entry = reading.mapped(described, parse, str(path / metadata.FOLDER / "dataset.yaml"))
    yield from reading.samples(path, shards, parse_entry, counts=metadata.counts(path))
