"""A `_target_` node becomes an object here and nowhere else.

`hydra.utils.instantiate` is not used: a configuration that can name any callable can run any code. Here a target must
start with an allowed prefix (`vlmrun`, an installed `vlmrun.plugins` entry point, or `VLMRUN_ALLOW`; never something a
config or checkpoint says), the object found must be defined below that prefix (no re-exported `os.system`), and its
arguments are compared with its signature first.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vlmrun.errors import ConfigError, Problem, suggest


def allowed_prefixes() -> tuple[str, ...]:
    """Packages whose classes a config may name."""
    extra = [name.strip() for name in os.environ.get("VLMRUN_ALLOW", "").split(",") if name.strip()]
    plugins = [entry.value.split(":")[0].split(".")[0] for entry in entry_points(group="vlmrun.plugins")]
    return ("vlmrun", *extra, *plugins)


def is_allowed(dotted: str) -> bool:
    """Whether a dotted path lies below an allowed prefix."""
    return any(dotted == prefix or dotted.startswith(prefix + ".") for prefix in allowed_prefixes())


def check(target: str, arguments: dict[str, Any], where: str, supplied: frozenset[str] = frozenset()) -> list[Problem]:
    """Problems of a target, found by reading its source: nothing of it is imported or run.

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
    source = _module_file(module_name)
    if source is None:
        return [
            Problem(f"no module {module_name!r}", where, "check _target_; the folder it lies in must be on PYTHONPATH")
        ]
    tree = ast.parse(source.read_text("utf-8"))
    function = _find_callable(tree, attribute)
    if function is None:
        names = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_"]
        return [Problem(f"{module_name} has no {attribute!r}", where, suggest(attribute, names, noun="names"))]
    return _compare(function, attribute, arguments, where, supplied)


def build(target: Any, base: type | None = None, **extra: Any) -> Any:
    """Imports a target and calls it with its arguments and `extra`.

    Args:
        target: a `schema.Target`.
        base: the class the object must be of, when the kind has one.

    Raises:
        ConfigError: when the target is not allowed, not found, of another kind, or given wrong arguments.
    """
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
    return found(**target.arguments, **extra)


def _forbidden(target: str, where: str) -> Problem:
    return Problem(
        f"target {target!r} is not allowed",
        where,
        f"allowed packages: {', '.join(allowed_prefixes())}; allow one of your own with VLMRUN_ALLOW=its_name",
    )


def _module_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _find_callable(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """The function, or the class's own or inherited-in-module `__init__`."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name in functions:
        return functions[name]
    node = classes.get(name)
    while node is not None:
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                return member
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        node = next((classes[base] for base in bases if base in classes), None)
    return None


def _compare(
    function: ast.FunctionDef, name: str, arguments: dict[str, Any], where: str, supplied: frozenset[str]
) -> list[Problem]:
    signature = function.args
    positional = [argument.arg for argument in signature.posonlyargs + signature.args if argument.arg != "self"]
    keyword = [argument.arg for argument in signature.kwonlyargs]
    known = [argument for argument in positional + keyword if argument not in supplied]
    problems = []
    if signature.kwarg is None:
        for key in arguments:
            if key not in known:
                problems.append(
                    Problem(f"{name} takes no argument {key!r}", where, suggest(key, known, noun="arguments"))
                )
    required = positional[: len(positional) - len(signature.defaults)]
    required += [
        a.arg for a, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if default is None
    ]
    for key in required:
        if key not in arguments and key not in supplied:
            problems.append(Problem(f"{name} needs the argument {key!r}", where, f"add {key}: ... beside _target_"))
    return problems
