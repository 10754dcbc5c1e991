"""Files of our own with a JSON value a line.

Texts in them stand as they are, and with them characters that `str.splitlines` takes for the end of a line (U+2028,
U+2029, U+0085). Only a newline ends one here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import logs

log = logs.get(__name__)


def lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; a missing file has none."""
    if not path.is_file():
        return []
    return [line for line in path.read_text("utf-8", errors="replace").split("\n") if line.strip()]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that is only reported: what is torn is passed over and named once, a lost file is empty."""
    try:
        found = lines(path)
    except OSError:
        return
    for number, line in enumerate(found, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            _say(str(path), number)
            continue
        if isinstance(row, dict):
            yield row


@functools.cache
def _say(path: str, number: int) -> None:
    log.warning("%s: row %d is torn and passed over", path, number)
