"""Values as words of a shell script, whatever characters they have."""

from __future__ import annotations

import shlex
from typing import Any


def word(value: Any) -> str:
    """A value as one word of a command, whatever characters it has."""
    text = str(value) if not isinstance(value, float) else repr(value)
    return shlex.quote(text)


def flag(name: str, value: Any) -> str:
    """One flag, quoted."""
    return f"--{name} {word(value)}"


def comment(text: str) -> str:
    """A comment of one line."""
    return "# " + "".join(char if char.isprintable() else " " for char in text)
