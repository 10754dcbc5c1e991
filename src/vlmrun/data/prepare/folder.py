"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from vlmrun.artifact import fsync_folder
from vlmrun.errors import DataError


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, which takes its name at the end and is removed on an error.

    Raises:
        DataError: when the folder exists.
    """
    if folder.exists():
        raise DataError("the folder exists", str(folder), "name another one, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        fsync_folder(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
