"""What a class or function takes, read from its source: nothing is imported, not even the packages above it.

What cannot be read that way (a base class of a foreign package, a dataclass, an annotation that is no plain type) is
not judged: `UNKNOWN` takes anything. `build.build` binds the real signature before it calls.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "Sequence": (list, str),
    "dict": (dict,),
    "Mapping": (dict,),
}


@dataclass(frozen=True)
class Parameter:
    """One argument; `annotation` is None when it has none."""

    name: str
    required: bool
    annotation: ast.expr | None
    default: ast.expr | None = None

    def fits(self, value: Any) -> bool:
        """Whether a value from a config is of the annotated type; what is not a plain type fits."""
        implicit = isinstance(self.default, ast.Constant) and self.default.value is None and value is None
        return self.annotation is None or implicit or _fits(value, self.annotation)

    @property
    def expected(self) -> str:
        """The annotation as it is written."""
        return "" if self.annotation is None else ast.unparse(self.annotation).strip("'\"")


@dataclass(frozen=True)
class Signature:
    """The arguments of a callable, without `self`; `takes_any` when names beyond them may be given."""

    parameters: tuple[Parameter, ...]
    takes_any: bool


UNKNOWN = Signature((), takes_any=True)


class _Unreadable(Exception):
    """The `__init__` of a class cannot be found in the sources that may be read."""


def module_file(name: str) -> Path | None:
    """The file of a module, None when there is none. `importlib.util.find_spec` would import its parent packages."""
    first, *rest = name.split(".")
    if not first or not all(rest):
        return None
    try:
        spec = importlib.util.find_spec(first)  # of a top-level name: asks the finders, imports nothing
    except ValueError:
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # The last name alone: a folder without __init__.py looks up its full name's parent in sys.modules.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def public_names(module: str) -> list[str]:
    """Classes and functions a module defines."""
    return [
        node.name
        for node in _parse(module).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"
    ]


def read(module: str, name: str, readable: Callable[[str], bool]) -> Signature | None:
    """The signature of a class or function of a module that has a file; None when there is no such name.

    Args:
        readable: whether a dotted path may be followed, when the name or a base class is imported from there.

    Raises:
        SyntaxError: of the module, or of one that was followed, with its file and line.
    """
    try:
        found = _find(module, name, readable, frozenset())
    except KeyError:
        return None
    except _Unreadable:
        return UNKNOWN
    return UNKNOWN if found is None else found


def _parse(module: str) -> ast.Module:
    file = module_file(module)
    if file is None:
        raise _Unreadable(module)
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, SyntaxError) and error.lineno is not None:
            raise
        raise SyntaxError(str(error), (str(file), 1, 1, "")) from error  # null bytes come without a place


def _find(module: str, name: str, readable: Callable[[str], bool], seen: frozenset[str]) -> Signature | None:
    """The signature; None for a class that has no `__init__`, nor has any of its bases.

    Raises:
        KeyError: when the module does not have the name.
    """
    if f"{module}.{name}" in seen:
        raise _Unreadable(name)
    seen |= {f"{module}.{name}"}
    tree = _parse(module)
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    imported = dict(_imports(tree, module))
    node = defined.get(name)
    if isinstance(node, ast.FunctionDef):
        return _signature(node, skip=0)
    if node is None:
        if not readable(imported[name]):
            raise KeyError(name)
        origin, _, attribute = imported[name].rpartition(".")
        return _find(origin, attribute, readable, seen)
    members = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
    if "__init__" in members:
        return _signature(members["__init__"], skip=1)
    if "__new__" in members or node.decorator_list or node.keywords:  # as @dataclass, which writes an __init__
        raise _Unreadable(name)
    for base in node.bases:
        dotted = _path(base, module, defined.keys(), imported)
        if not readable(dotted):
            raise _Unreadable(dotted)
        origin, _, attribute = dotted.rpartition(".")
        try:
            found = _find(origin, attribute, readable, seen)
        except KeyError as error:
            raise _Unreadable(dotted) from error
        if found is not None:
            return found
    return None


def _path(node: ast.expr, module: str, defined: Collection[str], imported: Mapping[str, str]) -> str:
    """The dotted path that a name in a module stands for; not one of a package when the name is unknown."""
    first, _, rest = ast.unparse(node).partition(".")
    if first in defined and not rest:
        return f"{module}.{first}"
    return f"{imported.get(first, '')}.{rest}" if rest else imported.get(first, "")


def assigned(module: str, name: str, wanted: str, readable: Callable[[str], bool]) -> str | None:
    """The dotted path of what a class assigns to the attribute `wanted`, or else the nearest base that does.

    Args:
        readable: whether a dotted path may be followed.
    """
    try:
        tree = _parse(module)
    except _Unreadable:
        return None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imported = dict(_imports(tree, module))
    if name not in classes:
        return _assigned_at(imported.get(name, ""), wanted, readable)
    for member in classes[name].body:
        targets = member.targets if isinstance(member, ast.Assign) else [getattr(member, "target", None)]
        value = getattr(member, "value", None)
        if value is not None and any(isinstance(target, ast.Name) and target.id == wanted for target in targets):
            return _path(value, module, classes.keys(), imported)
    bases = (_path(base, module, classes.keys(), imported) for base in classes[name].bases)
    return next((found for base in bases if (found := _assigned_at(base, wanted, readable))), None)


def _assigned_at(dotted: str, wanted: str, readable: Callable[[str], bool]) -> str | None:
    module, _, name = dotted.rpartition(".")
    return assigned(module, name, wanted, readable) if module and readable(dotted) else None


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Name -> the dotted path it stands for, of the imports at the top of a module."""
    file = module_file(module)
    package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def _signature(function: ast.FunctionDef, skip: int) -> Signature:
    """Args: skip: arguments in front that Python supplies, as `self`."""
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return Signature(
        tuple(Parameter(given.arg, default is None, given.annotation, default) for given, default in pairs),
        takes_any=arguments.kwarg is not None,
    )


def _fits(value: Any, annotation: ast.expr) -> bool:
    if value is not None and not isinstance(value, bool | int | float | str | list | dict):
        return True  # no value of a config: given in Python
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            return _fits_text(value, text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _fits_plain(value, name)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _fits_subscript(value, name, inner)
    return True


def _fits_text(value: Any, text: str) -> bool:
    try:
        return _fits(value, ast.parse(text, mode="eval").body)
    except SyntaxError:
        return True


def _fits_plain(value: Any, name: str) -> bool:
    if name not in _PLAIN:
        return True
    return isinstance(value, _PLAIN[name]) and (name == "bool" or not isinstance(value, bool))


def _fits_subscript(value: Any, name: str, inner: ast.expr) -> bool:
    options = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Optional":
        return value is None or _fits(value, inner)
    if name == "Union":
        return any(_fits(value, option) for option in options)
    if name == "Literal":
        plain = [option.value for option in options if isinstance(option, ast.Constant)]
        return len(plain) < len(options) or any(type(value) is type(one) and value == one for one in plain)
    if name in ("list", "Sequence"):
        return _fits_plain(value, name) and all(_fits(item, inner) for item in value)
    return _fits_plain(value, name)
