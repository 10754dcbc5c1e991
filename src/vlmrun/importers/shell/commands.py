"""What reading a script yields: the programs it would start, what could not be known, and what is broken."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmrun.importers.shell.source import Broken


@dataclass(frozen=True)
class Command:
    """A program as the script would start it."""

    argv: tuple[str, ...]
    lines: tuple[int, ...]  # where each of argv stands
    env: dict[str, str]  # what the script exported or set in front of it
    folder: str  # working folder, as far as `cd` tells
    file: str
    document: str | None = None  # its standard input, when that stands in the script

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.lines[0]


@dataclass(frozen=True)
class Note:
    """Something that only running the script could tell, and what was taken for it."""

    file: str
    line: int
    text: str


@dataclass
class Reading:
    """All of one script, and of the scripts it calls."""

    commands: list[Command] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    broken: list[tuple[str, Broken]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # path -> content that the script writes
    batch: dict[str, str] = field(default_factory=dict)  # options of #SBATCH lines

    def note(self, file: str, line: int, text: str) -> None:
        """Lists something unknown, once."""
        if (found := Note(file, line, text)) not in self.notes:
            self.notes.append(found)
