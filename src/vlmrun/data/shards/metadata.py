"""megatron-energon's `.nv-meta` folder: which shards a split has, and how a sample's parts are named. Free of torch.

    .info.json (7), .info.yaml (4)    samples of every shard
    split.yaml                        shards of train, val and test; runs of names in braces (7) or written out (4)
    dataset.yaml                      sample type and field map
    index.sqlite, index.uuid (7)      every sample and part with its offset
    SHARD.idx                         beside each shard: where its samples begin, uint64

Source: what `energon prepare` of 4.0.0 and 7.4.1 writes, as recorded.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from vlmrun import artifact
from vlmrun.data.shards import names
from vlmrun.data.shards.tar import Entry, entries
from vlmrun.errors import DataError, suggest

FOLDER = ".nv-meta"
PARTS = ("train", "val", "test")
Version = Literal[4, 7]
_WRITTEN_BY = "7.4.1"
_SAMPLE_TYPE = {"__module__": "megatron.energon", "__class__": "VQASample"}
FIELD_MAP = {"image": "jpg", "context": "json[0][value]", "answers": "json[1][value]"}
_PREPARE = "vlmrun data convert FILE FOLDER --to energon, or `energon prepare`"
_TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
                      byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
                           content_byte_size INTEGER);
"""
_INDICES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def shards_in(folder: Path) -> list[str]:
    """All shards below a folder in energon's order, that of their paths as text: 10 stands before 2.

    Raises:
        DataError: when there is no such folder, or no shard in it.
    """
    if not folder.is_dir():
        raise DataError("the folder of shards does not exist", str(folder), "check data.<name>.annotations")
    found = sorted(
        path.relative_to(folder).as_posix() for kind in ("*.tar", "*.tgz") for path in folder.rglob(kind)
    )  # fmt: skip
    if not found:
        raise DataError("no shard (*.tar) is in the folder", str(folder), "vlmrun data convert FILE FOLDER --to wds")
    return found


def split(folder: Path, part: str) -> list[str]:
    """Shards of one part of the split, in its order.

    Raises:
        DataError: when the metadata are missing or damaged, or the part is unknown or empty.
    """
    place = folder / FOLDER / "split.yaml"
    found = _load(place)
    parts = found.get("split_parts")
    if not isinstance(parts, dict):
        raise DataError("`split_parts` is missing", str(place), _PREPARE)
    if part not in parts:
        raise DataError(f"the split has no part {part!r}", str(place), suggest(part, parts, noun="parts"))
    excluded = {name for pattern in found.get("exclude") or [] for name in names.expand(str(pattern))}
    listed = [name for pattern in parts[part] or [] for name in names.expand(str(pattern))]
    kept = [name for name in listed if name not in excluded]
    if not kept:
        raise DataError(
            f"part {part!r} of the split has no shard", str(place), "split again: --split 1,0,0, or smaller shards"
        )
    return kept


def field_map(folder: Path) -> dict[str, str | None]:
    """The field map of a data set of questions about images.

    Raises:
        DataError: for another sample type.
    """
    place = folder / FOLDER / "dataset.yaml"
    found = _load(place)
    kind = found.get("sample_type", {})
    name = kind.get("__class__") if isinstance(kind, dict) else kind
    if name != "VQASample":
        raise DataError(
            f"the sample type is {name}, not VQASample", str(place), "prepare it as VQASample: 9 in the menu"
        )
    described: dict[str, str | None] = found.get("field_map") or {}
    return described


def counts(folder: Path) -> dict[str, int]:
    """Samples of every shard, as the metadata tell."""
    new, old = folder / FOLDER / ".info.json", folder / FOLDER / ".info.yaml"
    found: dict[str, int] = _load(new if new.is_file() else old).get("shard_counts", {})
    return found


def check_index(folder: Path, shard: str, found: Sequence[Entry]) -> None:
    """Compares a shard with its `.idx`, where there is one.

    Raises:
        DataError: when the index is cut off, or of another shard.
    """
    place = folder / f"{shard}.idx"
    if not place.is_file():
        return
    known = place.read_bytes()
    if known != _packed(found):
        n = max(len(known) // 8 - 1, 0)
        what = f"the index has {n} samples and the shard {len(found)}" if n != len(found) else "its offsets are others"
        raise DataError(f"{what}: it is cut off, or of another shard", str(place), f"write it again: {_PREPARE}")


def shares(text: str) -> list[float]:
    """`9,1,0` as shares of train, val and test.

    Raises:
        DataError: when they are not three numbers of which one is above 0.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(PARTS) or min(found) < 0 or sum(found) <= 0:
        raise DataError(f"{text!r} is no split", "--split", "shares of train, val and test, such as 9,1,0")
    return found


def divide(shards: Sequence[str], wanted: Sequence[float]) -> dict[str, list[str]]:
    """Shards of each part: the parts end at int(shards x share so far).

    Raises:
        DataError: when a part with a share gets no shard.
    """
    total, begun, reached = sum(wanted), 0, 0.0
    found: dict[str, list[str]] = {}
    for part, share in zip(PARTS, wanted, strict=True):
        reached += share / total
        end = int(len(shards) * reached)
        found[part] = list(shards[begun:end])
        begun = end
        if share > 0 and not found[part]:
            raise DataError(
                f"part {part!r} of the split gets none of {len(shards)} shard(s): it could not be opened",
                f"--split {','.join(f'{each:g}' for each in wanted)}",
                "--split 1,0,0, or more shards with a smaller --max-count",
            )
    return found


def write(
    folder: Path, version: Version, wanted: Sequence[float], *, written_by: str = _WRITTEN_BY
) -> dict[str, list[str]]:
    """Writes everything that `energon prepare` writes, and returns the split.

    Raises:
        DataError: for a split with an empty part, a shard without samples, or (7) a key that is used twice.
    """
    shards = shards_in(folder)
    parts = divide(shards, wanted)
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    found: dict[str, int] = {}
    with _database(place / "index.sqlite") if version == 7 else contextlib.nullcontext() as database:
        for number, shard in enumerate(shards):
            listed = list(entries(folder, shard))
            if not listed:
                raise DataError("the shard has no samples", str(folder / shard), "delete it")
            found[shard] = len(listed)
            with artifact.writing(folder / f"{shard}.idx") as path:
                path.write_bytes(_packed(listed))
            if database is not None:
                _insert(database, number, listed, folder / shard)
    _write_yaml(place / "dataset.yaml", {"sample_type": _SAMPLE_TYPE, "field_map": FIELD_MAP}, sort_keys=False)
    if version == 7:
        artifact.write_text(place / "index.uuid", str(uuid.uuid4()))
        info = {"energon_version": written_by, "shard_counts": found}
        artifact.write_text(place / ".info.json", json.dumps(info, indent=2))
        runs = {part: names.collapse(listed) for part, listed in parts.items()}
        _write_yaml(place / "split.yaml", {"split_parts": runs, "exclude": []}, sort_keys=False)
    else:
        _write_yaml(place / ".info.yaml", {"shard_counts": found}, sort_keys=True)
        _write_yaml(place / "split.yaml", {"split_parts": parts, "exclude": []}, sort_keys=True)
    return parts


def _packed(found: Sequence[Entry]) -> bytes:
    numbers = [*(entry.offset for entry in found), found[-1].end if found else 0]
    return struct.pack(f"<{len(numbers)}Q", *numbers)


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database that takes its name when it is whole."""
    with artifact.writing(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as database:
        database.executescript(_TABLES)
        yield database
        database.executescript(_INDICES)
        database.commit()


def _insert(database: sqlite3.Connection, number: int, found: Iterable[Entry], shard: Path) -> None:
    for index, entry in enumerate(found):
        try:
            row = (number, entry.key, index, entry.offset, entry.end - entry.offset)
            database.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise DataError(
                f"key {entry.key!r} is used twice", str(shard), "give every record its own id: energon 7 refuses it"
            ) from error
        parts = [(number, index, name, place.offset, place.size) for name, place in entry.parts.items()]
        database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)


def _write_yaml(path: Path, value: Mapping[str, Any], *, sort_keys: bool) -> None:
    artifact.write_text(path, yaml.safe_dump(dict(value), sort_keys=sort_keys))


def _load(place: Path) -> dict[str, Any]:
    try:
        text = place.read_text("utf-8")
    except OSError as error:
        raise DataError(f"energon's {place.name} cannot be read: {error.strerror}", str(place), _PREPARE) from error
    try:
        found = json.loads(text) if place.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{place.name} is damaged: {error}", str(place), _PREPARE) from error
    return found if isinstance(found, dict) else {}
