"""Files that are read to their end: regular ones only. A pipe waits for a writer, and a device may never end."""

from __future__ import annotations

import stat
from pathlib import Path

from vlmrun.errors import CheckpointError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_JSON_BYTES = 1 << 28  # the largest tokenizer.json known is a tenth of that


def kind(mode: int) -> str | None:
    """What a thing is that is no regular file, in words; None for one that is. `mode` is that of `os.stat`."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require(path: Path, *, json: bool = False) -> None:
    """Looks at one file that is about to be read; a file that is not there is left to the reader.

    Args:
        json: it is read into memory, so its size is bounded too.

    Raises:
        CheckpointError: when it is a pipe, a device, a socket or a folder, or too large.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # a loop of links, a folder without rights
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", str(path), "look at the file") from error
    other = kind(found.st_mode)
    if other is not None:
        raise CheckpointError(f"{path.name} is {other}, not a file", str(path), "put the file itself there")
    if json and found.st_size > _JSON_BYTES:
        raise CheckpointError(
            f"{path.name} has {found.st_size:,} bytes, {_JSON_BYTES:,} at most are read", str(path), "look at the file"
        )


def require_all(folder: Path) -> None:
    """Looks at all files of a model's folder before another library reads whichever it likes; folders in it may stay.

    Raises:
        CheckpointError: as `require`.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            require(path, json=path.suffix == ".json")
