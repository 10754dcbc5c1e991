"""What can be known of data in tar shards before any of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import DataConfig, RunConfig
from vlmrun.data.shards import fields, metadata
from vlmrun.errors import DataError, Problem


def _shards(run: RunConfig) -> Iterator[Problem]:
    for name, data in derived.files_read(run).items():
        yield from _entry(data, f"data.{name}")


def _entry(data: DataConfig, where: str) -> Iterator[Problem]:
    if not derived.in_shards(data):
        for name in ("split", "fields"):
            if getattr(data, name) is not None:
                what = f"format {data.format} takes no {name}"
                yield Problem(what, f"{where}.{name}", f"{where}.{name}=null, or {where}.format=energon")
        return
    if data.images is not None:
        yield Problem("images of shards lie in the shards", f"{where}.images", f"{where}.images=null")
    if data.format == "wds" and data.split is not None:
        yield Problem("format wds takes no split", f"{where}.split", f"{where}.split=null, or {where}.format=energon")
    folder = Path(data.annotations).expanduser()
    if not folder.is_dir():
        return  # told with the other files
    try:
        _look_at(data, folder, where)
    except DataError as error:
        yield from error.problems


def _look_at(data: DataConfig, folder: Path, where: str) -> None:
    """Shards and field map; raises DataError."""
    shards = metadata.shards_in(folder)
    if data.fields is not None:
        fields.parse(data.fields, f"{where}.fields")
    if data.format == "wds":
        return
    listed = metadata.split(folder, data.split or "train")
    missing = sorted(set(listed) - set(shards))
    if missing:
        what = f"{len(missing)} of {len(listed)} shards of the split are not there, {missing[0]} among them"
        raise DataError(what, str(folder), "fetch them, or write the split anew: energon prepare")
    if data.fields is None:
        fields.parse(metadata.field_map(folder), str(folder / metadata.FOLDER / "dataset.yaml"))


RULES = (
    Rule("shards", "Tar shards of a split are all there with a field map, and only they have a split and fields.",
         ("data.*.format", "data.*.annotations", "data.*.images", "data.*.split", "data.*.fields"), _shards, here=True),
)  # fmt: skip
