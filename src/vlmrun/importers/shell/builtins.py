"""Commands of the shell itself, as far as they change what is started; each takes its arguments."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from vlmrun.importers.shell import arithmetic, marks
from vlmrun.importers.shell.conditions import Condition
from vlmrun.importers.shell.scope import Scope

# Write nothing that counts and start nothing.
QUIET = frozenset(
    (
        *(
            ":",
            "mkdir",
            "rm",
            "touch",
            "chmod",
            "sleep",
            "wait",
            "ulimit",
            "umask",
            "trap",
            "alias",
            "unalias",
            "shopt",
        ),
        *(
            "hash",
            "module",
            "conda",
            "mamba",
            "deactivate",
            "pip",
            "pip3",
            "apt",
            "apt-get",
            "clear",
            "date",
            "hostname",
        ),
        *(
            "nvidia-smi",
            "ls",
            "type",
            "which",
            "command",
            "jobs",
            "kill",
            "ln",
            "wandb",
            "git",
            "wget",
            "curl",
            "unzip",
        ),
        *("tar", "tee", "grep", "awk", "sed", "head", "tail", "cat"),
    )
)
Status = bool | None  # None: not known


def assign(scope: Scope, name: str, value: str | list[str], *, append: bool = False) -> None:
    """`name=value` and `name+=value`; an array is a list."""
    if append:
        before = scope.variables.get(name, "")
        if isinstance(before, list) or isinstance(value, list):
            value = [*(before if isinstance(before, list) else [before] if before else []), *_listed(value)]
        else:
            value = before + value
    scope.set(name, value)


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def unset(scope: Scope, arguments: list[str]) -> Status:
    """`unset NAME ...`"""
    for name in arguments:
        scope.variables.pop(name, None)
        scope.exported.discard(name)
    return True


def set_(scope: Scope, arguments: list[str]) -> Status:
    """`set -e`, `set -euo pipefail`, `set +e`, `set -- WORD ...`"""
    rest = list(arguments)
    while rest and rest[0] != "--" and rest[0][:1] in ("-", "+"):
        word = rest.pop(0)
        named = rest.pop(0) if word.endswith("o") and rest else ""
        if "e" in word[1:] or named == "errexit":
            scope.errexit = word[0] == "-"
    if rest:
        scope.arguments = rest[rest[0] == "--" :]
    return True


def shift(scope: Scope, arguments: list[str]) -> Status:
    """`shift [N]`"""
    count = int(arguments[0]) if arguments and arguments[0].isdecimal() else 1
    if count > len(scope.arguments):
        return False
    del scope.arguments[:count]
    return True


def cd(scope: Scope, arguments: list[str]) -> Status:
    """`cd FOLDER`, by name alone."""
    target = next((word for word in arguments if not word.startswith("-")), scope.get("HOME") or "~")
    scope.folder = (
        marks.unknown(f"cd {marks.shown(target)}") if marks.is_unknown(target) else join(scope.folder, target)
    )
    return True


def join(folder: str, path: str) -> str:
    """A path as seen from a folder."""
    return posixpath.normpath(posixpath.join(folder, path)) if path else folder


def let(scope: Scope, arguments: list[str]) -> Status:
    """`let X=Y+1`"""
    status: Status = True
    for word in arguments:
        try:
            status = arithmetic.evaluate(word, scope) != 0
        except arithmetic.Unknown:
            status = None
    return status


def test(scope: Scope, arguments: list[str]) -> Status:
    """`test ...`"""
    return Condition(arguments, scope).value()


CHANGE: dict[str, Callable[[Scope, list[str]], Status]] = {
    "unset": unset,
    "set": set_,
    "shift": shift,
    "cd": cd,
    "pushd": cd,
    "let": let,
    "test": test,
    "true": lambda scope, arguments: True,
    "false": lambda scope, arguments: False,
}


def echo(scope: Scope, arguments: list[str]) -> str:
    """`echo [-n] [-e] WORD ...`"""
    ending = "\n"
    while arguments and re.fullmatch("-[neE]+", arguments[0]):
        ending = "" if "n" in arguments[0] else ending
        arguments = arguments[1:]
    return " ".join(arguments) + ending


def printf(scope: Scope, arguments: list[str]) -> str:
    """`printf FORMAT WORD ...`: %s, %d and line breaks; the rest is unknown."""
    if not arguments:
        return ""
    form, words = arguments[0].replace("\\n", "\n").replace("\\t", "\t"), arguments[1:]
    if re.search(r"%(?![sd%])|\\", form):
        return marks.unknown(f"printf {arguments[0]}")
    rest = iter(words)
    return re.sub("%[sd%]", lambda sign: "%" if sign[0] == "%%" else next(rest, ""), form)


def basename(scope: Scope, arguments: list[str]) -> str:
    """`basename PATH [SUFFIX]`"""
    if not arguments or arguments[0].startswith("-"):
        return marks.unknown("basename " + " ".join(arguments))
    name = posixpath.basename(arguments[0].rstrip("/")) or "/"
    suffix = arguments[1] if len(arguments) > 1 else ""
    return (name.removesuffix(suffix) if name != suffix else name) + "\n"


def dirname(scope: Scope, arguments: list[str]) -> str:
    """`dirname PATH`"""
    if not arguments or arguments[0].startswith("-"):
        return marks.unknown("dirname " + " ".join(arguments))
    return (posixpath.dirname(arguments[0].rstrip("/")) or ".") + "\n"


def seq(scope: Scope, arguments: list[str]) -> str:
    """`seq [FIRST [STEP]] LAST`"""
    if not all(re.fullmatch(r"-?\d{1,6}", word) for word in arguments) or not 1 <= len(arguments) <= 3:
        return marks.unknown("seq " + " ".join(map(marks.shown, arguments)))
    numbers = [int(word) for word in arguments]
    first, step, last = (
        (1, 1, *numbers) if len(numbers) == 1 else (numbers[0], *([1] if len(numbers) == 2 else []), *numbers[1:])
    )
    run = range(first, last + (1 if step > 0 else -1), step or 1)
    return "".join(f"{number}\n" for number in run[:1000])


def pwd(scope: Scope, arguments: list[str]) -> str:
    """`pwd`"""
    return scope.folder + "\n"


SAY: dict[str, Callable[[Scope, list[str]], str]] = {
    "echo": echo,
    "printf": printf,
    "basename": basename,
    "dirname": dirname,
    "seq": seq,
    "pwd": pwd,
}
