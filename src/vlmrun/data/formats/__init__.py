"""Data formats by name. A format is a module with `read(path) -> Iterator[Sample | Rejected]`. Free of torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from vlmrun import build
from vlmrun.config.schema import DataConfig
from vlmrun.data.formats.values import usable_text, written
from vlmrun.data.sample import ONE_TAG, Rejected, Sample, misplaced
from vlmrun.errors import ConfigError, suggest

FORMATS = {
    name: f"vlmrun.data.formats.{name}" for name in ("llava", "sharegpt", "openai", "minicpm", "vqa", "wds", "energon")
}

Reader = Callable[[Path], Iterator[Sample | Rejected]]
AnyReader = Callable[..., Iterator[Sample | Rejected]]  # some take `as_it_is` besides


def of(data: DataConfig, *, as_it_is: bool = False) -> Iterator[Sample | Rejected]:
    """The records of a data entry, whose paths are absolute; raises as `reader`."""
    read = reader(data.format, as_it_is=as_it_is, split=data.split, fields=data.fields, ignore_keys=data.ignore_keys)
    return read(Path(data.annotations))


def reader(
    name: str,
    *,
    as_it_is: bool = False,
    split: str | None = None,
    fields: Mapping[str, str | None] | None = None,
    ignore_keys: Sequence[str] = (),
) -> Reader:
    """The reading function of a format: a built-in name, or the dotted path of an allowed plugin's module.

    Whatever the format, a text that no tokenizer takes is rejected, and one that has not a tag for every image.

    Args:
        as_it_is: for `compat.records`, of formats whose `read` takes it.
        split, fields: likewise, of formats of shards.
        ignore_keys: likewise, of formats of JSON records.

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
    given = {"as_it_is": as_it_is, "split": split, "fields": fields, "ignore_keys": ignore_keys}
    options = {key: value for key, value in given.items() if value}
    unknown = [key for key in options if key not in inspect.signature(found).parameters]
    if "as_it_is" in unknown:
        raise ConfigError(
            f"format {name!r} has no records as the original codes took them",
            "stage.*.compat.records",
            "use format: llava, or compat.records: false",
        )
    if "ignore_keys" in unknown:
        where = "data.<name>.ignore_keys"
        raise ConfigError(f"format {name!r} takes no ignore_keys", where, "data.<name>.ignore_keys=[]")
    if unknown:
        fix = f"data.<name>.{unknown[0]}=null, or format=energon"
        raise ConfigError(f"format {name!r} takes no {unknown[0]}", f"data.<name>.{unknown[0]}", fix)
    return partial(_usable, partial(found, **options), as_it_is)


def _usable(read: AnyReader, as_it_is: bool, path: Path) -> Iterator[Sample | Rejected]:
    for found in read(path):
        if isinstance(found, Rejected):
            yield written(found)
        elif not as_it_is and (wrong := misplaced(found)) is not None:  # vlmrun's own readers say it in their words
            yield written(Rejected(found.id, found.source, wrong, ONE_TAG))
        else:
            yield usable_text(found)
