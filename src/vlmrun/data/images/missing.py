"""The error for an image that does not exist: what its name is instead of a file name, or the nearest name.

Free of Pillow. Records of other programs have addresses or base64 where a file name is expected here.
"""

from __future__ import annotations

import os
import re
import unicodedata
from itertools import islice
from pathlib import Path

from vlmrun.errors import DataError, closest

_SHOWN = 100  # characters of a name that an error shows: a whole image in base64 is no name to read
_LISTED = 1000  # files among which a near name is looked for: folders of a million images are common
# What stands in a record where a name is expected, what it is, and what to do about it.
_NO_NAMES = (
    (re.compile(r"data:.*", re.S), "is a data URL", "write the image to a file below data.<name>.images and name that"),
    (re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*", re.S), "is an address", "download it and name the file"),
    (
        re.compile(r"[A-Za-z0-9+/\s]{200,}={0,2}\s*"),
        "looks like base64",
        "write the image to a file below data.<name>.images and name that",
    ),
)


def quoted(name: str) -> str:
    """A name in quotes, its middle left out when it is long."""
    if len(name) > _SHOWN:
        name = f"{name[: _SHOWN // 2]}...{name[-_SHOWN // 4 :]}"
    return repr(name)


def is_no_name(name: str) -> bool:
    """Whether this is an address or an image itself, in the place of a file's name."""
    return any(pattern.fullmatch(name) for pattern, _, _ in _NO_NAMES)


def error(root: Path, name: str, where: str, *, suggesting: bool) -> DataError:
    """The error for a name that no file has."""
    what, fix = _described(root, name, suggesting=suggesting)
    # Of a name that is no path, or an endless one, the record alone says where.
    path = "" if len(name) > _SHOWN else str(root / name)
    place = f"{path}, named in {where}" if path and where else path or where
    return DataError(f"image {quoted(name)} {what}", place, fix)


def _described(root: Path, name: str, *, suggesting: bool) -> tuple[str, str]:
    for pattern, what, fix in _NO_NAMES:
        if pattern.fullmatch(name):
            return f"{what}, not a file name", fix
    path = root / name
    if path.is_symlink():
        return f"does not exist: it is a link to {path.readlink()}, which is not there", "fetch the file it leads to"
    if suggesting:
        if (root.parent / name).is_file():
            return "does not exist", f"names start one folder higher: data.<name>.images={root.parent}"
        near = _alike(root, name) or nearest(path.parent, path.name)
        if near is not None:
            return "does not exist", f"did you mean {near!r}?"
    return "does not exist", "check data.<name>.images, or on_error: skip"


def nearest(folder: Path, name: str) -> str | None:
    """The most similar name of a folder's first files, or None."""
    return closest(name, _names(folder, _LISTED))


def _alike(root: Path, name: str) -> str | None:
    """The name of a file that differs in letter case and Unicode form only; None when there is none."""
    parts: list[str] = []
    for part in name.replace("\\", "/").split("/"):
        here = root.joinpath(*parts)
        listed = [part] if (here / part).exists() else _names(here, None)
        found = next((each for each in listed if _folded(each) == _folded(part)), None)
        if found is None:
            return None
        parts.append(found)
    return "/".join(parts)


def _names(folder: Path, limit: int | None) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, limit)]
    except (OSError, ValueError):
        return []


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
