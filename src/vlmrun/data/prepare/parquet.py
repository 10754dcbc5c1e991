"""Parquet files as `datasets` writes them -> JSON and a folder of images. Rows keep their keys and their order.

Images are columns of bytes (`{"bytes", "path"}`), alone or in lists, under `image` or `images`; names stay names.
Values that are null are left out: such a file gives every row every column.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.data.prepare.folder import appearing
from vlmrun.errors import DataError

EXTRA = "pip install 'vlmrun-trainer[parquet]'"
IMAGES = "images"  # the folder beside the JSON file

_IMAGE_KEYS = ("image", "images")
_ENDINGS = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))
_ROWS_AT_ONCE = 64


def convert(source: Path, destination: Path) -> int:
    """Writes all rows of a file, or of all files `*.parquet` of a folder in order, and returns how many.

    Args:
        destination: the JSON file; images are written to the folder `images` beside it, which must not exist.

    Raises:
        DataError: for a file that cannot be read, and a value that JSON or an image file cannot hold.
    """
    n_rows = 0
    with appearing(destination.parent / IMAGES) as folder, artifact.writing(destination) as temporary:
        with temporary.open("w", encoding="utf-8") as handle:
            for row in _rows(source):
                where = f"{source}[{n_rows}]"
                record = {key: _plain(value, key, where) for key, value in _with_files(row, folder, n_rows, where)}
                handle.write((",\n" if n_rows else "[\n") + json.dumps(record, ensure_ascii=False, allow_nan=False))
                n_rows += 1
            handle.write("\n]\n" if n_rows else "[]\n")
        if not n_rows:
            raise DataError("no row in the file", str(source), "look at the file")
    return n_rows


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError("reading Parquet needs pyarrow, which is not installed", str(source), EXTRA) from error
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise DataError("no Parquet file is there", str(source), "name a file, or a folder of files *.parquet")
    for file in files:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"the file cannot be read: {error}", str(file), "fetch it again") from error


def _with_files(row: dict[str, Any], folder: Path, number: int, where: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a row, its images written to files."""
    for key, value in row.items():
        if value is None:
            continue
        if key not in _IMAGE_KEYS:
            yield key, value
        elif isinstance(value, list):
            yield key, [_file(each, folder, f"{number:08d}_{place}", where) for place, each in enumerate(value)]
        else:
            yield key, _file(value, folder, f"{number:08d}", where)


def _file(value: Any, folder: Path, stem: str, where: str) -> str:
    """The name of an image, which is written if the row holds its bytes."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and isinstance(value, dict):
        content = value.get("path")
    if isinstance(content, str) and content:
        return content
    if not isinstance(content, bytes):
        raise DataError("an image is neither bytes nor a name", where, "write the image's bytes into the file")
    ending = next((ending for start, ending in _ENDINGS if content.startswith(start)), None)
    if ending is None:
        raise DataError("an image has no known format", where, "save it as PNG, JPEG, WebP, GIF or BMP")
    (folder / (stem + ending)).write_bytes(content)
    return stem + ending


def _plain(value: Any, key: str, where: str) -> Any:
    """A value as JSON holds it; null in objects is left out."""
    if isinstance(value, dict):
        return {name: _plain(inner, key, where) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner, key, where) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and value == value):
        return value
    raise DataError(f"column {key!r} holds a {type(value).__name__}", where, "leave the column out of the file")
