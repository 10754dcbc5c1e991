"""Data formats by name. A format is a module with `read(path) -> Iterator[Sample | Rejected]`. Free of torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vlmrun import build
from vlmrun.data.sample import Rejected, Sample
from vlmrun.errors import ConfigError, suggest

FORMATS = {name: f"vlmrun.data.formats.{name}" for name in ("llava", "minicpm", "vqa")}

Reader = Callable[[Path], Iterator[Sample | Rejected]]
AnyReader = Callable[..., Iterator[Sample | Rejected]]  # some take `as_it_is` besides


def reader(name: str, *, as_it_is: bool = False) -> Reader:
    """The reading function of a format: a built-in name, or the dotted path of an allowed plugin's module.

    Args:
        as_it_is: for `compat.records`, of formats whose `read` takes it.

    Raises:
        ConfigError: for an unknown name (with the nearest), a plugin that is not allowed or has no `read`, or a format
            that cannot be read as it is.
    """
    dotted = FORMATS.get(name, name)
    if "." not in dotted:
        raise ConfigError(f"no data format {name!r}", "data.format", suggest(name, FORMATS, noun="formats"))
    if not build.is_allowed(dotted):
        allowed = ", ".join(build.allowed_prefixes())
        raise ConfigError(f"data format {name!r} is not allowed", "data.format", f"allowed packages: {allowed}")
    try:
        found: AnyReader | None = getattr(importlib.import_module(dotted), "read", None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"no module {error.name!r}", "data.format", "check the path for a typing mistake") from error
    if found is None:
        raise ConfigError(f"{dotted} has no function `read`", "data.format", "define read(path) there")
    if as_it_is and "as_it_is" not in inspect.signature(found).parameters:
        raise ConfigError(
            f"format {name!r} has no records as the original codes took them",
            "stage.*.compat.records",
            "use format: llava, or compat.records: false",
        )
    return partial(found, as_it_is=True) if as_it_is else found
