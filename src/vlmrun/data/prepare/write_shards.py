"""LLaVA JSON and a folder of images -> tar shards, as Pai-Megatron-Patch's script lays them out.

Two members a sample, `<id>.jpg` with the image's bytes as they are and `<id>.json` with the turns alone. Every record
is looked at before it is written, all shards appear under their names at once, and equal input gives equal bytes.

Source: alibaba/Pai-Megatron-Patch@a098ca5 toolkits/multimodal_data_preprocessing/convert_llava_pretrain_to_wds.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmrun import logs
from vlmrun.data.formats import wds
from vlmrun.data.formats.base import records
from vlmrun.data.images.finding import ImageFolder, find_image
from vlmrun.data.prepare.folder import appearing
from vlmrun.data.prepare.tar_writer import Entry, Writers
from vlmrun.data.reading import list_skipped, rejection_error
from vlmrun.data.sample import Rejected
from vlmrun.data.shards.tar import split_name
from vlmrun.errors import DataError

log = logs.get(__name__)

SOURCE_NAME = "blip_laion_cc_sbu_558k.json"  # what the script looks for in a folder
SKIPPED = "skipped.jsonl"
_MAX_BYTES = 3e9  # webdataset's own limit; it closes a shard before the next sample
_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Layout:
    """How shards are cut and named.

    Args:
        pattern: of their names, with one `%d`; `pretrain-%06d.tar` pads with zeros.
        max_count: samples of a shard.
        max_bytes: content after which a shard takes no further sample.
        mtime: of every member, in seconds since 1970.
        writers: processes that write, one shard each at a time.
    """

    pattern: str = "pretrain-%d.tar"
    max_count: int = 10_000
    max_bytes: float = _MAX_BYTES
    mtime: float = 0
    writers: int = 1


@dataclass(frozen=True)
class Written:
    """What became of the records."""

    n_samples: int
    n_shards: int
    n_skipped: int
    n_longer: int  # samples with more than the two turns that energon's field map names


def write(
    source: Path,
    folder: Path,
    layout: Layout,
    *,
    images: Path | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    finish: Callable[[Path], None] | None = None,
) -> Written:
    """Writes all records of a file as shards.

    Args:
        source: the annotation file, or the folder that the script expects it in.
        folder: must not exist; it appears when all is written.
        images: folder of the images; None: that of the annotation file.
        on_error: `skip` leaves bad records out and lists them in skipped.jsonl.
        finish: what else belongs into the folder, before it appears.

    Raises:
        DataError: listing bad records; nothing is left behind then.
    """
    file = source / SOURCE_NAME if source.is_dir() else source
    _check_pattern(layout.pattern)
    rejected: list[Rejected] = []
    seen = _usable(file, ImageFolder(images or file.parent), rejected)
    with appearing(folder) as partial:
        written = _write_all(seen, partial, layout, stop=lambda: bool(rejected) and on_error == "fail")
        if rejected and on_error == "fail":
            raise rejection_error(rejected)
        if not written.n_samples:
            raise DataError("no record can be written", str(file), "look at the file: shards would be empty")
        list_skipped(partial / SKIPPED, [record.to_dict() for record in rejected])
        if finish is not None:
            finish(partial)
    return Written(written.n_samples, written.n_shards, len(rejected), written.n_longer)


def _check_pattern(pattern: str) -> None:
    try:
        is_one = pattern % 0 != pattern % 1 and (pattern % 0).endswith(".tar") and "/" not in pattern
    except (TypeError, ValueError):
        is_one = False
    if not is_one:
        raise DataError(f"{pattern!r} names no shards", "--pattern", "such as pretrain-%d.tar or pretrain-%06d.tar")


def _usable(file: Path, images: ImageFolder, rejected: list[Rejected]) -> Iterator[Entry]:
    """Records that can be written; the others are appended to `rejected`."""
    seen: dict[str, int] = {}
    for index, value in records(file):
        found = value if isinstance(value, Rejected) else _look_at(value, images, seen, (str(file), index))
        if isinstance(found, Rejected):
            rejected.append(found)
            continue
        seen[found.key] = index
        yield found


def _look_at(value: Any, images: ImageFolder, seen: dict[str, int], source: tuple[str, int]) -> Entry | Rejected:
    key = value.get("id") if isinstance(value, dict) else None
    told = str(key if key is not None else "")
    wrong = _wrong_key(value, seen)
    if wrong is not None:
        return Rejected(told, source, *wrong)
    assert isinstance(key, str)  # as `_wrong_key` found
    image = value.get("image")
    if not isinstance(image, str) or not image:
        return Rejected(told, source, "`image` is no file name: a shard's sample has one image", "name one image")
    parsed = wds.parse(key, value, image, source)
    if isinstance(parsed, Rejected):
        return parsed
    try:
        found = find_image(images, image, suggesting=False)
    except DataError as error:
        return Rejected(told, source, error.problems[0].what, error.problems[0].fix)
    return Entry(key, found.path, json.dumps(value["conversations"]).encode("utf-8"))


def _wrong_key(value: Any, seen: dict[str, int]) -> tuple[str, str] | None:
    """Why a record's id cannot name its members, and what to do."""
    if not isinstance(value, dict):
        return f"a record is a {type(value).__name__}, not an object", "write {...} with `conversations`"
    if "id" not in value:
        return "`id` is missing", "give every record an id of its own"
    key = value["id"]
    if not isinstance(key, str):
        return f"`id` {key!r} is no text, as names in a shard are", f'write "{key}"'
    if not key.rpartition("/")[2]:
        return "`id` is empty: the sample would not be found in the shard", "give every record an id of its own"
    if "." in key.rpartition("/")[2]:
        return f"`id` {key!r} has a dot, at which the sample's name ends in a shard", "write it without dots"
    if split_name(f"{key}.jpg") != (key, "jpg") or key.startswith("/") or ".." in key.split("/"):
        return f"`id` {key!r} is no name of a sample in a shard", "write letters, digits, - and _"
    if key in seen:
        return f"`id` {key!r} is used by record {seen[key]} as well", "give every record its own id"
    return None


def _write_all(usable: Iterator[Entry], folder: Path, layout: Layout, *, stop: Callable[[], bool]) -> Written:
    """Hands shards to writers, a few ahead; after the first bad record only looks at what is left."""
    n_samples = n_shards = n_longer = n_bytes = 0
    began = told = time.monotonic()
    with Writers(layout.writers) as writers:
        for batch in _cut(usable, layout):
            n_samples, n_longer = n_samples + len(batch), n_longer + sum(_is_longer(record) for record in batch)
            if stop():
                continue
            writers.submit(folder / (layout.pattern % n_shards), batch, layout.mtime)
            n_shards += 1
            n_bytes = writers.n_bytes
            if time.monotonic() - told > _EVERY_SECONDS:
                told = time.monotonic()
                log.info("%s samples, %.0f MB/s", f"{n_samples:,}", n_bytes / 1e6 / (told - began))
    return Written(n_samples, n_shards, 0, n_longer)


def _is_longer(record: Entry) -> bool:
    return len(json.loads(record.turns)) > 2


def _cut(usable: Iterator[Entry], layout: Layout) -> Iterator[list[Entry]]:
    """The samples of each shard: one is closed when it is full, before the next sample."""
    batch: list[Entry] = []
    size = 0
    for record in usable:
        if batch and (len(batch) >= layout.max_count or size >= layout.max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.picture.stat().st_size + len(record.turns)
    if batch:
        yield batch
