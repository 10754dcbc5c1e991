"""Variables, arguments and limits of a script that is being read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import marks

MAX_STATEMENTS = 10_000
MAX_TEXT = 50_000  # characters of one value
# Variables that bash itself has, each time another value, or one of the machine.
OF_THE_SHELL = frozenset({"RANDOM", "SRANDOM", "SECONDS", "EPOCHSECONDS", "HOSTNAME", "UID", "EUID", "PPID", "BASHPID"})
MAX_DEPTH = 24  # scripts, functions and substitutions inside one another


@dataclass
class Budget:
    """What is left of the work that reading one script may cost; shared by everything it calls."""

    statements: int = MAX_STATEMENTS

    def spend(self, line: int, work: int = 1) -> None:
        """Counts one statement, or one that is as much work as several.

        Raises:
            ConfigError: when a loop never ends or the script does far more than start programs.
        """
        self.statements -= work
        if self.statements < 0:
            raise ConfigError(
                f"the script runs more than {MAX_STATEMENTS:,} statements",
                f"line {line}",
                "import the part that starts the training, as a file of its own",
            )


@dataclass
class Scope:
    """One shell's state. An array is a list; everything else a string."""

    variables: dict[str, str | list[str]] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    script: str = ""
    folder: str = "."
    functions: dict[str, Any] = field(default_factory=dict)
    unset: dict[str, int] = field(default_factory=dict)  # variables read without a value: the first line
    errexit: bool = False

    def copy(self) -> Scope:
        """A subshell's scope: what it changes is lost, what it finds unset is kept."""
        return replace(
            self,
            variables={name: list(v) if isinstance(v, list) else v for name, v in self.variables.items()},
            exported=set(self.exported),
            arguments=list(self.arguments),
            functions=dict(self.functions),
        )

    def get(self, name: str) -> str | None:
        """A parameter as one string; None when it is not set."""
        if name.isdecimal():
            number = int(name)
            if number == 0:
                return self.script
            return self.arguments[number - 1] if number <= len(self.arguments) else None
        if name in ("@", "*"):
            return " ".join(self.arguments)
        if name == "#":
            return str(len(self.arguments))
        if name == "PWD":
            return self.folder
        value = self.variables.get(name, marks.unknown(name) if name in OF_THE_SHELL else None)
        return (value[0] if value else None) if isinstance(value, list) else value

    def items(self, name: str) -> list[str]:
        """All elements of an array, or the one value of a plain variable."""
        if name in ("@", "*"):
            return list(self.arguments)
        value = self.variables.get(name, [])
        return list(value) if isinstance(value, list) else [value]

    def set(self, name: str, value: str | list[str]) -> None:
        """Assigns.

        Raises:
            ConfigError: for a value that grows without bound.
        """
        if sum(map(len, value)) > MAX_TEXT:
            raise ConfigError(f"{name} grows beyond {MAX_TEXT:,} characters", self.script, "import a simpler script")
        self.variables[name] = value

    def environment(self) -> dict[str, str]:
        """What the script exported, as a program it starts sees it."""
        return {name: self.get(name) or "" for name in sorted(self.exported) if name in self.variables}
