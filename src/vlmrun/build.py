"""A `_target_` node becomes an object here and nowhere else.

`hydra.utils.instantiate` is not used: a configuration that can name any callable can run any code. Here a target must
start with an allowed prefix (`vlmrun`, an installed `vlmrun.plugins` entry point, or `VLMRUN_ALLOW`; never something a
config or checkpoint says), the object found must be defined below that prefix (no re-exported `os.system`), and its
arguments are compared with its signature first.
"""

from __future__ import annotations

import importlib
import inspect
import os
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from vlmrun import signature
from vlmrun.errors import ConfigError, Problem, suggest


def allowed_prefixes() -> tuple[str, ...]:
    """Packages whose classes a config may name."""
    extra = [name.strip() for name in os.environ.get("VLMRUN_ALLOW", "").split(",") if name.strip()]
    return ("vlmrun", *extra, *plugins())


@cache
def plugins() -> tuple[str, ...]:
    """Packages that are installed as `vlmrun.plugins`; looking for them reads a file of every installed package."""
    return tuple(entry.value.split(":")[0].split(".")[0] for entry in entry_points(group="vlmrun.plugins"))


def is_allowed(dotted: str) -> bool:
    """Whether a dotted path lies below an allowed prefix."""
    return any(dotted == prefix or dotted.startswith(prefix + ".") for prefix in allowed_prefixes())


def module(dotted: str, where: str) -> ModuleType:
    """Imports a module that lies below an allowed prefix.

    Raises:
        ConfigError: when it is not allowed, or not there.
    """
    if not is_allowed(dotted):
        allowed = ", ".join(allowed_prefixes())
        fix = f"allowed packages: {allowed}; allow one of your own with VLMRUN_ALLOW=its_name"
        raise ConfigError(f"module {dotted!r} is not allowed", where, fix)
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        fix = "check its name; the folder it lies in must be on PYTHONPATH"
        raise ConfigError(f"no module {error.name!r}", where, fix) from error


def check(target: str, arguments: dict[str, Any], where: str, supplied: frozenset[str] = frozenset()) -> list[Problem]:
    """Problems of a target, found by reading its source: nothing is imported or run, nor the packages above it.

    Args:
        supplied: arguments that the program adds itself when it builds this kind of part.
    """
    if not is_allowed(target):
        return [_forbidden(target, where)]
    hidden = [key for key in arguments if key in ("_args_", "_partial_", "_recursive_", "_convert_")]
    nested = [key for key, value in arguments.items() if isinstance(value, dict) and "_target_" in value]
    if hidden or nested:
        return [
            Problem(f"{name!r} is not allowed in a target", where, "write plain arguments") for name in hidden + nested
        ]
    module_name, _, attribute = target.rpartition(".")
    if signature.module_file(module_name) is None:
        return [
            Problem(f"no module {module_name!r}", where, "check _target_; the folder it lies in must be on PYTHONPATH")
        ]
    try:
        takes = signature.read(module_name, attribute, is_allowed)
        if takes is None:
            fix = suggest(attribute, signature.public_names(module_name), noun="names")
            return [Problem(f"{module_name} has no {attribute!r}", where, fix)]
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        return [Problem(f"{target} cannot be read: {error.msg}", place, f"mend the file that {where} names")]
    return _compare(takes, attribute, arguments, where, supplied)


def build(target: Any, base: type | None = None, **extra: Any) -> Any:
    """Imports a target and calls it with its arguments and `extra`.

    Args:
        target: a `schema.Target`.
        base: the class the object must be of, when the kind has one.

    Raises:
        ConfigError: when the target is not allowed, not found, of another kind, or given wrong arguments.
    """
    return find(target, base, **extra)(**target.arguments, **extra)


def find(target: Any, base: type | None = None, **extra: Any) -> Any:
    """The class or function that `build` would call, everything about the call checked; arguments as `build`'s."""
    problems = check(target.target, target.arguments, target.target, frozenset(extra))
    if problems:
        raise ConfigError(problems)
    module_name, _, attribute = target.target.rpartition(".")
    found = getattr(importlib.import_module(module_name), attribute)
    home = inspect.getmodule(found)
    if home is None or not is_allowed(home.__name__) or not callable(found):
        raise ConfigError([_forbidden(target.target, target.target)])
    if base is not None and not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(
            f"{target.target} is not a {base.__name__}",
            target.target,
            f"name a subclass of {base.__module__}.{base.__name__}",
        )
    _bind(found, {**target.arguments, **extra}, target.target)
    return found


def attribute(target: str, name: str, base: type) -> Any:
    """What a target's class assigns to an attribute: a class that its source names, imported from where that lies.

    The class itself is not imported, nor what it imports, unless both are in one file.

    Args:
        target: that `check` has no problem with.
        base: the class that the attribute's value must be derived from.

    Returns:
        None when the class, and what can be read of its bases, assign nothing.

    Raises:
        ConfigError: when it cannot be imported, is not allowed, or is of another kind.
    """
    module, _, kind = target.rpartition(".")
    dotted = signature.assigned(module, kind, name, is_allowed)
    if dotted is None:
        return None
    if not is_allowed(dotted):
        raise ConfigError([_forbidden(dotted, f"{target}.{name}")])
    origin, _, last = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(origin), last)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{dotted} cannot be imported: {error}", f"{target}.{name}", "mend that import") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        fix = f"name a subclass of {base.__module__}.{base.__name__}"
        raise ConfigError(f"{dotted} is not a {base.__name__}", f"{target}.{name}", fix)
    return found


def _forbidden(target: str, where: str) -> Problem:
    return Problem(
        f"target {target!r} is not allowed",
        where,
        f"allowed packages: {', '.join(allowed_prefixes())}; allow one of your own with VLMRUN_ALLOW=its_name",
    )


def _compare(
    takes: signature.Signature, name: str, arguments: dict[str, Any], where: str, supplied: frozenset[str]
) -> list[Problem]:
    known = {parameter.name: parameter for parameter in takes.parameters if parameter.name not in supplied}
    problems = []
    for key, value in arguments.items():
        if key in supplied or (key not in known and not takes.takes_any):
            problems.append(Problem(f"{name} takes no argument {key!r}", where, suggest(key, known, noun="arguments")))
        elif key in known and not known[key].fits(value):
            what = f"{name} takes {known[key].expected} as {key}, not {value!r}"
            problems.append(Problem(what, f"{where}.{key}", f"give a value of type {known[key].expected}"))
    for key, parameter in known.items():
        if parameter.required and key not in arguments:
            problems.append(Problem(f"{name} needs the argument {key!r}", where, f"add {key}: ... beside _target_"))
    return problems


def _bind(found: Any, arguments: dict[str, Any], target: str) -> None:
    """Compares with the real signature, which the source may not have told."""
    try:
        takes = inspect.signature(found)
    except ValueError:  # written in C: it tells nothing
        return
    try:
        takes.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{target}: {error}", target, f"its arguments: {takes}") from error
