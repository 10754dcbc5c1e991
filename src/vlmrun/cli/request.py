"""What the command line of a run asks for: our own options, and Hydra's overrides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmrun.config import overrides as words
from vlmrun.errors import ConfigError, Problem


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    overrides: list[str]
    config_dirs: list[Path]
    show_config: bool
    multirun: bool


def read(arguments: list[str]) -> Request:
    """Splits our own options, which may stand anywhere, from Hydra's overrides."""
    overrides: list[str] = []
    config_dirs: list[Path] = []
    show_config = multirun = False
    rest = iter(arguments)
    for word in rest:
        name, _, value = word.partition("=")
        if word in ("-m", "--multirun"):
            multirun = True
        elif name in ("--cfg", "-c"):
            show_config = _expect(value or next(rest, ""), name, "job")
        elif name in ("--config-dir", "-cd"):
            config_dirs.append(_folder(value or next(rest, ""), name))
        elif word.startswith("-"):
            options = "-m, --cfg job, --config-dir DIR, --help, --version"
            raise ConfigError(f"no option {word!r}", "command line", f"options: {options}")
        else:
            overrides.append(word)
    return Request(words.readable(overrides), config_dirs, show_config, multirun)


def _expect(value: str, option: str, wanted: str) -> bool:
    if value != wanted:
        raise ConfigError(f"{option} {value}".strip(), "command line", f"{option} {wanted} prints the composed run")
    return True


def _folder(value: str, option: str) -> Path:
    if not value or not Path(value).is_dir():
        raise ConfigError(
            [Problem(f"no folder {value!r}", f"command line ({option})", "give a folder laid out like conf/")]
        )
    return Path(value)
