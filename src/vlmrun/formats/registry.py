"""The formats by name: which one a folder is, and reading it.

`table` registers those of this package; a floor above may add its own. A format looks at content, never at a folder's
name, and the first that says yes counts.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vlmrun import regular
from vlmrun.errors import CheckpointError, ConfigError, suggest
from vlmrun.formats import manifest
from vlmrun.formats.base import Format, How, Model

FORMATS: dict[str, Format] = {}  # in the order in which a folder is tried
_ASKED: set[str] = set()  # those that a folder is never taken for


def register(name: str, format: Format, *, asked: bool = False) -> None:
    """Adds a format, which is tried after those that are there.

    Args:
        asked: it is read only when the caller names it, since reading it takes trust in its author.
    """
    FORMATS[name] = format
    if asked:
        _ASKED.add(name)


def get(name: str) -> Format:
    """What a format can do.

    Raises:
        ConfigError: with the nearest name.
    """
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", "format", suggest(name, FORMATS, noun="formats"))
    return FORMATS[name]


def read(folder: Path, how: How, name: str | None = None) -> Model:
    """A model from a folder or file.

    Args:
        name: its format; None: found out from its content.

    Raises:
        CheckpointError: when something is missing or damaged, or the configuration is not what the format has.
    """
    name = name or detect(folder)
    try:
        model = get(name).read(folder, how)
    except _ODD as error:
        raise odd(error, name, folder) from error
    for path in model.files.values():  # which are copied whole
        regular.require(path)
    return model


# What readers run into when a configuration lacks a key, or holds something else than it should.
_ODD = (KeyError, ValueError, TypeError, AttributeError, IndexError, StopIteration, struct.error)


def odd(error: Exception, name: str, folder: Path) -> CheckpointError:
    """That a folder is not what its format says, in a sentence."""
    first = next(iter(str(error).splitlines()), "")[:200]
    return CheckpointError(
        f"this cannot be read as {name}: {type(error).__name__} {first}".rstrip(),
        str(folder),
        "its configuration is damaged, or it is of another format: --from NAME",
    )


def find(folder: Path) -> str | None:
    """The format of a folder or file, by its content; None when none fits.

    Raises:
        CheckpointError: when it is of a format that must be asked for.
    """
    known = manifest.format_of(folder)
    names = [known] if known in FORMATS else FORMATS
    for name in names:
        if name == known or FORMATS[name].detect(folder):
            if name in _ASKED:
                raise CheckpointError(
                    f"this says that it is of the format {name}, which is read only when you say so",
                    str(folder),
                    f"if you trust its author: --from {name}",
                )
            return str(name)
    return None


def detect(folder: Path) -> str:
    """As `find`.

    Raises:
        CheckpointError: also when none fits.
    """
    if not folder.exists():
        raise CheckpointError(f"there is no {folder.name!r}", str(folder), "give the folder or file of a model")
    name = find(folder)
    if name is None:
        raise CheckpointError(
            "this is no model in a format known here",
            str(folder),
            f"formats: {', '.join(FORMATS)}; --from NAME if it is",
        )
    return name
