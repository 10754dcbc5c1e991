"""The formats models come in: each reads into internal names, or writes from them, and knows no other.

A module of the table offers `detect`, `read`, `refuse` and `write` (`base.Format`); one that is only read has no
`write`. `detect` looks at content, never at a folder's name; the first that says yes counts.
"""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

from vlmrun.errors import CheckpointError, ConfigError, suggest

_HERE = "vlmrun.formats"
FORMATS = {
    "native": f"{_HERE}.native",
    "minicpm": f"{_HERE}.minicpm",
    "hf_llava": f"{_HERE}.hf_llava",
    "delta": f"{_HERE}.delta",
    "denseconnector": f"{_HERE}.upstream:DENSE",
    "bunny": f"{_HERE}.upstream:BUNNY",
    "kollava": f"{_HERE}.upstream:KOLLAVA",
    "llava": f"{_HERE}.upstream:LLAVA",
    "mm_projector": f"{_HERE}.upstream:PROJECTOR_ONLY",
    "peft": f"{_HERE}.peft",
    "megatron": f"{_HERE}.megatron",
    "gguf": f"{_HERE}.gguf",
    "bnb4": f"{_HERE}.bnb:FOUR",
    "bnb8": f"{_HERE}.bnb:EIGHT",
    "hf": f"{_HERE}.hf",
    "training": "vlmrun.train.checkpoint.export",  # which knows how a model is put together to be trained
}


def get(name: str) -> Any:
    """What a format can do: a module, or an object in one.

    Raises:
        ConfigError: with the nearest name.
    """
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", "format", suggest(name, FORMATS, noun="formats"))
    module, _, member = FORMATS[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, member) if member else found


def read(folder: Path, how: Any, name: str | None = None) -> Any:
    """A model (`base.Model`) from a folder or file.

    Args:
        name: its format; None: found out from its content.

    Raises:
        CheckpointError: when something is missing or damaged, or the configuration is not what the format has.
    """
    name = name or detect(folder)
    try:
        return get(name).read(folder, how)
    except _ODD as error:
        raise odd(error, name, folder) from error


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


def detect(folder: Path) -> str:
    """The format of a folder or file, by its content.

    Raises:
        CheckpointError: when none fits.
    """
    from vlmrun.formats import manifest

    known = manifest.format_of(folder)
    if known in FORMATS:
        return str(known)
    if not folder.exists():
        raise CheckpointError(f"there is no {folder.name!r}", str(folder), "give the folder or file of a model")
    for name in FORMATS:
        if get(name).detect(folder):
            return name
    raise CheckpointError(
        "this is no model in a format known here", str(folder), f"formats: {', '.join(FORMATS)}; --from NAME if it is"
    )
