"""The parsers of all verbs, caught as each verb asks for its own; nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import io
from typing import Any
from unittest import mock

from vlmrun.cli import app, help

# Verbs that read their words themselves, as overrides: options that `cli.train.read` takes.
_OF_RUNS: dict[str, list[str] | None] = {"-m": None, "--multirun": None, "--cfg": ["job"], "--config-dir": []}
ACTIONS = ("show", "lint", "convert", "prepare")


class _Caught(Exception):
    """Carries a parser out of the verb that made it."""


def verbs() -> list[tuple[str, ...]]:
    """Every verb, and every action of `data`."""
    return [*((verb,) for verb in app.VERBS), *(("data", action) for action in ACTIONS)]


def parser(*verb: str) -> argparse.ArgumentParser | None:
    """A verb's parser; None: it has none and reads its words itself."""

    def catch(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Caught(self)

    module, _, function = app.VERBS[verb[0]].partition(":")
    main = getattr(__import__(module, fromlist=[function]), function)
    names = ("parse_args", "parse_known_args", "parse_intermixed_args")
    with contextlib.ExitStack() as patched, contextlib.redirect_stdout(io.StringIO()):
        for name in names:
            patched.enter_context(mock.patch.object(argparse.ArgumentParser, name, catch))
        if verb[0] in help.OF_RUNS or verb in (("data",), ("completion",)):
            return None
        try:
            main([*verb[1:], "--help"])
        except _Caught as caught:
            found: argparse.ArgumentParser = caught.args[0]
            return found
    return None


def options(*verb: str) -> dict[str, list[str] | None]:
    """Option -> None for a flag, or the values it takes, empty where any will do."""
    of = parser(*verb)
    takes_overrides = verb[0] in (*help.OF_RUNS, "plan") or verb in (("data", "show"), ("data", "lint"))
    found = dict(_OF_RUNS) if takes_overrides else {}
    for action in of._actions if of else ():
        for name in action.option_strings:
            if name.startswith("--"):
                found[name] = None if action.nargs == 0 else [str(choice) for choice in action.choices or ()]
    found.pop("--help", None)
    return found
