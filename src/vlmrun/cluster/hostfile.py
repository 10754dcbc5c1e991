"""Host files as DeepSpeed and MPI know them: a line `HOST slots=N` for every node, the first one leading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlmrun import regular
from vlmrun.errors import CheckpointError, Problem

# Names end up in a shell command that `vlmrun nodes` prints.
_LINE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.:-]*)\s+slots\s*=\s*([1-9][0-9]*)")
_WHERE = "hardware.hostfile"


@dataclass(frozen=True)
class Host:
    """A node: its name or address, and how many GPUs of it may be used."""

    name: str
    slots: int


def read(path: str) -> tuple[list[Host], list[Problem]]:
    """The hosts of a file in order, and what is wrong with it. Blank lines and `#` comments are passed over."""
    try:
        regular.require(Path(path).expanduser(), json=True)
        text = Path(path).expanduser().read_text("utf-8")
    except CheckpointError as error:
        return [], [Problem(error.problems[0].what, _WHERE, "a text file of lines `HOST slots=N`")]
    except (OSError, ValueError, RuntimeError) as error:
        return [], [Problem(f"{path} cannot be read: {error}", _WHERE, "a text file of lines `HOST slots=N`")]
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.split("#", 1)[0].strip()
        found = _LINE.fullmatch(bare)
        if found is not None:
            hosts.append(Host(found[1], int(found[2])))
        elif bare:
            problems.append(Problem(f"{path}, line {number}: {bare!r} is no host", _WHERE, "HOST slots=N"))
    twice = sorted({host.name for host in hosts if [other.name for other in hosts].count(host.name) > 1})
    if twice:
        problems.append(Problem(f"{path} names {', '.join(twice)} twice", _WHERE, "each host once, with all its slots"))
    if not hosts and not problems:
        problems.append(Problem(f"{path} names no host", _WHERE, "lines `HOST slots=N`"))
    return hosts, problems
