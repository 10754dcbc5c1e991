"""Files and records of other formats that are often met: named as what they are, with what reads or converts them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmrun.errors import DataError

_HEAD_BYTES = 1 << 12
_UNPACK = "unpack it, and name the JSON file inside"
_PARQUET = "vlmrun data convert FILE OUTPUT.json --from parquet"
# How files begin that are no text.
_BINARY = (
    (b"PAR1", "a Parquet file", _PARQUET),
    (b"ARROW1", "an Arrow file", "save it as JSON: datasets.Dataset.from_file(FILE).to_json(OUTPUT)"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "save it as JSON: datasets.Dataset.from_file(FILE).to_json(OUTPUT)"),
    (b"\x1f\x8b", "compressed with gzip", "gunzip FILE"),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"BZh", "compressed with bzip2", "bunzip2 FILE"),
    (b"\xfd7zXZ", "compressed with xz", "unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd FILE"),
    (b"SQLite format 3", "an SQLite database", "export its records as JSON"),
    (b"\x89HDF", "an HDF5 file", "export its records as JSON"),
    (b"\x93NUMPY", "a NumPy file", "export its records as JSON"),
    (b"\x80\x04", "a pickle", "save its records as JSON where you trust it; vlmrun opens no pickle"),
    (b"\xff\xfe", "not UTF-8 but UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > OUTPUT"),
    (b"\xfe\xff", "not UTF-8 but UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > OUTPUT"),
)
_TABLES = (".csv", ".tsv")
_LIST = "wrap the records in [ ], or name a JSONL file *.jsonl"


def check_content(path: Path) -> str:
    """The first character of a JSON text that is no space.

    Raises:
        DataError: for a file of another format, with what converts it.
    """
    with path.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
    for start, kind, fix in _BINARY:
        if head.startswith(start):
            raise DataError(f"the file is {kind}, not JSON", str(path), fix.replace("FILE", path.name))
    if head[257:262] == b"ustar":
        raise DataError(
            "the file is a tar archive, not JSON", str(path), "data.<name>.format=wds and the folder of its shards"
        )
    text = head.decode("utf-8-sig", "replace").lstrip()
    ending = path.suffix.lower()
    if ending in _TABLES and text and text[0] not in "[{":
        columns = next(csv.reader([text.splitlines()[0]], delimiter="," if ending == ".csv" else "\t"), [])
        fix = "write every row as a JSON object on a line of its own, in a file *.jsonl"
        raise DataError(f"the file is a table with the columns {', '.join(columns)}, not JSON", str(path), fix)
    return text[:1]


def fix_of_object(path: Path) -> str:
    """What to do with a file that begins with no list."""
    with path.open("rb") as handle:
        first = handle.readline(_HEAD_BYTES).decode("utf-8-sig", "replace")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return _LIST
    if isinstance(value, dict):
        held = next((key for key, inner in value.items() if isinstance(inner, list) and key not in _TALKS), None)
        if held is not None:
            return f"keep the list under {held!r} alone: jq '.{held}' {path.name} > OUTPUT.json"
        return f"these are records by line: name the file {path.stem}.jsonl"
    return _LIST


_TALKS = ("conversations", "messages", "conversation", "images", "image", "history")

# Keys that say which format a record has, and what reads it.
_BY_KEY = {
    "messages": ("OpenAI's `messages`", "data.<name>.format=openai reads messages of `role` and `content`"),
    "instruction": ("an Alpaca record", "write it as a question and an answer under `conversations`"),
    "chosen": ("a pair of preferences", "vlmrun trains on one answer: write it under `conversations`"),
    "prompt": ("a prompt and its completion", "write them as a question and an answer under `conversations`"),
    "query": ("a query and its response", "write them as a question and an answer under `conversations`"),
    "question": ("a question and its answer", "write them under `conversations`; to evaluate, data.<name>.format=vqa"),
    "caption": ("an image and its caption", "write the caption as an answer under `conversations`"),
    "text": ("plain text", "write a question and an answer under `conversations`"),
}


def known_by_keys(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a record without its conversation is, and what to do with it; None when no key says so."""
    return next((known for key, known in _BY_KEY.items() if key in record), None)
