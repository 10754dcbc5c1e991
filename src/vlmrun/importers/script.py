"""`vlmrun import FILE.sh`: reads, plans, writes, and compares what was written with the script."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlmrun.config.schema import RUN_NAME
from vlmrun.errors import ConfigError, Problem
from vlmrun.importers.arguments import read as read_arguments
from vlmrun.importers.launch import Launch
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.plan import Planner
from vlmrun.importers.recipe import Plan
from vlmrun.importers.shell.commands import Reading
from vlmrun.importers.shell.reader import read_script
from vlmrun.importers.shell.source import MAX_SIZE

_UNSUPPORTED = "--allow-unsupported lists it and leaves it out"


@dataclass
class Request:
    """What the user asks for."""

    files: Sequence[Path]
    name: str | None = None
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    meant: bool = False
    options: Options = field(default_factory=Options)
    allow_unsupported: bool = False
    source: str = "script"  # or a kind of argument file
    words: Sequence[str] = ()  # of such a file: its path, or swift's options


@dataclass(frozen=True)
class Outcome:
    """What came of it; with problems nothing is written, but every flag is accounted for all the same."""

    plan: Plan
    reading: Reading
    problems: list[Problem]


def plan(request: Request) -> tuple[Plan, Reading]:
    """What the scripts become, in the order given.

    Raises:
        ConfigError: with every problem that was found.
    """
    found = outcome(request)
    if found.problems:
        raise ConfigError(found.problems)
    return found.plan, found.reading


def outcome(request: Request) -> Outcome:
    """The same, problems and all.

    Raises:
        ConfigError: when a file cannot be read as what it is given as.
    """
    if request.name is not None and not re.fullmatch(RUN_NAME, request.name):
        raise ConfigError(f"--name {request.name!r} is no name", "--name", "letters, digits, ., - and _, as in run-2")
    launches, reading, options = _sources(request)
    first = Path(launches[0].command.file) if launches else request.files[0]
    root = Path() if launches else request.root or first.parent
    result = Planner(request.name or recipe_name(first), reading, options, _loader(root)).run(launches)
    problems = [*_broken(reading), *result.problems]
    if not request.allow_unsupported and not request.source.startswith("trainer_"):  # every field is in those
        problems += [
            Problem(f"{account.flag} is not supported: {account.detail}", f"line {account.line}", _UNSUPPORTED)
            for account in (*result.accounts, *result.file_accounts)
            if account.verdict in ("unsupported", "unknown")
            and account.command in result.training
            and not account.detail.startswith("not settled")
        ]
    return Outcome(result, reading, list(dict.fromkeys(problems)))


def _sources(request: Request) -> tuple[list[Launch], Reading, Options]:
    if request.source == "script":
        return [], _read(request), request.options
    family = "hf" if request.source == "trainer_args" else request.source
    options = replace(request.options, family=request.options.family or family)
    return [read_arguments(request.source, request.words)], Reading(), options


def _broken(reading: Reading) -> list[Problem]:
    fix = "--as-meant takes the flags that were meant; or fix the line"
    return [
        Problem(f"a continuation is broken: {item.cause}", f"{file}, line {item.line}", fix)
        for file, item in reading.broken
    ]


def _read(request: Request) -> Reading:
    """All scripts, in the order given."""
    reading = Reading()
    for path in request.files:
        one = read_script(path, request.arguments, request.environment, request.root, request.meant)
        reading.commands += one.commands
        reading.notes += one.notes
        reading.broken += one.broken
        reading.files |= one.files
        reading.batch |= one.batch
    return reading


def _loader(root: Path) -> Callable[[str], str | None]:
    def load(place: str) -> str | None:
        file = (root / place).resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file() or file.stat().st_size > MAX_SIZE:
            return None
        try:
            return file.read_text("utf-8")
        except UnicodeDecodeError:
            return None

    return load


def recipe_name(path: Path) -> str:
    """A recipe's name from a file's."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", path.stem).strip("_").lower()
    return name if name[:1].isalnum() else "imported"
