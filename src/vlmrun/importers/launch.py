"""A command taken apart: launchers, the program they start, and its flags."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from vlmrun.importers.shell.commands import Command

_PYTHON = re.compile(r"python[\d.]*$")
_DISTRIBUTED = {"torch.distributed.run", "torch.distributed.launch"}


@dataclass(frozen=True)
class Flag:
    """A flag as it stands in a command. `name` has its dashes; `values` are None-free, empty when it has none."""

    name: str
    values: tuple[str, ...]
    line: int

    @property
    def text(self) -> str:
        """For people."""
        return " ".join([self.name, *self.values])


@dataclass(frozen=True)
class Launcher:
    """One link of the chain in front of a program."""

    name: str
    flags: tuple[Flag, ...]

    def value(self, *names: str) -> str | None:
        """The last value of a flag, by any of its names; a flag without one counts as empty."""
        found = [" ".join(flag.values) for flag in self.flags if flag.name in names]
        return found[-1] if found else None


@dataclass(frozen=True)
class Launch:
    """A command as launchers, entry and flags."""

    command: Command
    chain: tuple[Launcher, ...]
    entry: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]  # arguments in front of the first flag, for scripts that take theirs by place
    shortened: bool = True  # the beginning of a flag's name is enough, as for argparse

    @property
    def program(self) -> str:
        """The entry's own name: `train_mem` of llava/train/train_mem.py."""
        return posixpath.basename(self.entry.removeprefix("-m ").replace(".py", "")).rpartition(".")[2]


@cache
def table(name: str) -> Any:
    """One of the tables beside this module."""
    return yaml.safe_load((files("vlmrun.importers") / f"{name}.yaml").read_text("utf-8"))


def take_apart(command: Command) -> Launch | None:
    """A command's launchers, entry and flags; None when it starts neither Python nor a launcher."""
    argv, lines = list(command.argv), list(command.lines)
    chain: list[Launcher] = []
    place, entry, started = 0, "", False
    while place < len(argv) and not entry:
        name = "python" if _PYTHON.search(posixpath.basename(argv[place])) else posixpath.basename(argv[place])
        if name == "accelerate" and argv[place + 1 : place + 2] == ["launch"]:
            place += 1
        if name not in table("launchers"):
            break
        flags, place, module = _options(argv, lines, place + 1, set(table("launchers")[name]["switches"]), name)
        if module in _DISTRIBUTED:
            flags, place, module = _options(
                argv, lines, place, set(table("launchers")["torchrun"]["switches"]), "torchrun"
            )
            name = "torchrun"
        started = True
        if name != "python":
            chain.append(Launcher(name, tuple(flags)))
        if module is not None:
            entry = f"-m {module}"
        elif place < len(argv) and not _launches(argv[place]):
            entry = argv[place]
            place += 1
    if not chain and not entry and not started:
        return None
    words, flags = _flags(argv[place:], lines[place:])
    return Launch(command, tuple(chain), entry, tuple(flags), tuple(words))


def _launches(word: str) -> bool:
    name = posixpath.basename(word)
    return name in table("launchers") or bool(_PYTHON.search(name))


def _options(
    argv: list[str], lines: list[int], place: int, switches: set[str], launcher: str
) -> tuple[list[Flag], int, str | None]:
    """A launcher's own options: up to the first word that is none. `-m MODULE` ends them."""
    found: list[Flag] = []
    while place < len(argv) and re.match(r"--?[A-Za-z]", argv[place]):
        word, line = argv[place], lines[place]
        name, has_value, value = word.partition("=")
        place += 1
        if name in ("-m", "--module") and place < len(argv):
            return found, place + 1, argv[place]
        if launcher == "python" and name == "-c":
            return found, len(argv), None
        if has_value:
            found.append(Flag(name, (value,), line))
        elif name in switches or place == len(argv):
            found.append(Flag(name, (), line))
        else:
            found.append(Flag(name, (argv[place],), line))
            place += 1
    return found, place, None


def _flags(argv: list[str], lines: list[int]) -> tuple[list[str], list[Flag]]:
    """A program's words before its first flag, and its flags; a negative number is a value."""
    words: list[str] = []
    found: list[tuple[str, list[str], int]] = []
    for word, line in zip(argv, lines, strict=True):
        if re.match(r"--?[A-Za-z]", word):
            name, has_value, value = word.partition("=")
            found.append((name, [value] if has_value else [], line))
        elif found:
            found[-1][1].append(word)
        else:
            words.append(word)
    return words, [Flag(name, tuple(values), line) for name, values, line in found]
