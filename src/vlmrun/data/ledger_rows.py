"""`ledger.jsonl.gz`: a row for each record of a training, in the order of its data.

    {"data": "talks", "record": 7, "id": "a7", "used": 3, "tokens": 96, "supervised": 12}

`tokens` and `supervised` are of one use. A record that was never used has `used: 0`; `truncated` is true where its end
was cut off; `skipped` says why it could not be used. With `record_losses`, `losses` has the mean loss of its supervised
tokens when it was first and last used, and `mean` over all uses. Two rows cannot have equal `data` and `record`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun.errors import CheckpointError


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ledger, one at a time.

    Raises:
        CheckpointError: when the file is damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise CheckpointError(f"the ledger is damaged: {error}", str(path), "train the stage again") from error
