"""Which words may come next on a command line. Read from files alone, within a fraction of a second."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmrun.cli.completion.keys import Line

SHELLS = ("bash", "zsh", "fish")
# Verbs by what their arguments are; those of `init` and `judge` are files, which the shell completes itself.
_TAKES = {
    **dict.fromkeys(("train", "check", "nodes", "plan", "data show", "data lint"), "overrides"),
    **dict.fromkeys(("recipes", "download", "export-script"), "recipes"),
    **dict.fromkeys(("ls", "chat", "serve", "merge", "average", "convert", "diff", "score", "submit"), "artifacts"),
    "data": "actions",
    "completion": "shells",
}


def candidates(words: Sequence[str]) -> list[str]:
    """The words that the last one may become.

    Args:
        words: the command line after `vlmrun`, the last word being typed, maybe empty.
    """
    verbs = _verbs()
    *before, current = words or [""]
    verb = before[0] if before and before[0] in verbs else "train"
    if verb == "data" and len(before) > 1:
        verb = f"data {before[1]}"
    options = verbs.get(verb, {})
    given = before[-1] if before else ""
    if options.get(given) is not None:  # the value of an option; free ones are files or numbers
        found = list(options[given] or ())
    elif current.startswith("-"):
        found = [*options, "--help"]
    else:
        found = list(_arguments(verb, [*before], current, verbs))
    return sorted({word for word in found if word.startswith(current) and word != current})


def _arguments(verb: str, before: list[str], current: str, verbs: dict[str, Any]) -> Iterator[str]:
    takes = _TAKES.get(verb)
    if not before:
        yield from (name for name in verbs if " " not in name)
    if takes == "overrides":
        yield from Line(before).candidates(current)
    elif takes == "recipes":
        yield from Line(before).catalog.options("recipe")
    elif takes == "artifacts":
        yield from _artifacts(Path(_value(before, "--output") or os.environ.get("VLMRUN_OUTPUT", "outputs")))
    elif takes == "actions":
        yield from (name.partition(" ")[2] for name in verbs if name.startswith("data "))
    elif takes == "shells":
        yield from SHELLS


def _artifacts(root: Path) -> Iterator[str]:
    """Names of finished stages, and their folders' names for one of several."""
    for file in (root / "stages").glob("*/artifact.json"):
        yield file.parent.name
        yield file.parent.name.rpartition("-")[0]


def _value(words: Sequence[str], option: str) -> str | None:
    """The value of an option in the words before."""
    for word, after in zip(words, [*words[1:], ""]):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _verbs() -> dict[str, Any]:
    """Verb -> option -> null for a flag, or the values that it takes; written by `make docs`."""
    file = Path(__file__).with_name("options.json")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found
