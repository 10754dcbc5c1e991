"""Merging and averaging in Python, recognized by the syntax tree; nothing of it is run."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_MAX = 200_000


@dataclass
class Found:
    """A merge or an average that a snippet does."""

    kind: str
    reads: list[str]
    writes: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def read_snippet(source: str) -> list[Found]:
    """`PeftModel.from_pretrained` with `merge_and_unload`, and `a * w + b * v` of two loaded models."""
    try:
        tree = ast.parse(source) if len(source) <= _MAX else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return []
    nodes = list(ast.walk(tree))
    names = _given(nodes, _text)
    try:
        found = [_merge(nodes, names), _average(nodes, names)]
    except RecursionError:  # sums of a thousand terms
        return []
    return [one for one in found if one is not None]


def _given(nodes: list[ast.AST], value: Callable[[ast.expr, dict[str, T]], T | None]) -> dict[str, T]:
    """Names that are given a value of one kind: what `value` makes of an expression and of the names so far."""
    found: dict[str, T] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            known = value(node.value, found)
            if known is not None:
                found[node.targets[0].id] = known
    return found


def _text(node: ast.expr | None, names: dict[str, str]) -> str | None:
    """A path: a text, a name of one, or an f-string up to its first value."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name):
            return names.get(name)
        case ast.JoinedStr(values=[ast.Constant(value=str() as text), *_]):
            return text
        case ast.BinOp(left=left, op=ast.Add()):
            return _text(left, names)
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]):
            return _text(first, names)
    return None


def _called(node: ast.AST, name: str) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return (isinstance(node.func, ast.Attribute) and node.func.attr == name) or (
        isinstance(node.func, ast.Name) and node.func.id == name
    )


def _argument(call: ast.AST, place: int, *names: str) -> ast.expr | None:
    assert isinstance(call, ast.Call)
    keyword = next((item.value for item in call.keywords if item.arg in names), None)
    return keyword if keyword is not None else call.args[place] if len(call.args) > place else None


def _folder(path: str) -> str:
    """The folder of a shard's path, cut where a value begins; a path without a file name as it is."""
    head, _, tail = path.rpartition("/")
    return head if head and ("." in tail or tail.endswith(("-", "_")) or not tail) else path


def _merge(nodes: list[ast.AST], names: dict[str, str]) -> Found | None:
    if not any(_called(node, "merge_and_unload") for node in nodes):
        return None
    for node in nodes:
        if _called(node, "from_pretrained") and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in (
                "PeftModel",
                "PeftModelForCausalLM",
                "AutoPeftModelForCausalLM",
            ):
                place = 0 if owner.id.startswith("Auto") else 1
                path = _text(_argument(node, place, "model_id", "pretrained_model_name_or_path"), names)
                saved = [
                    _text(_argument(other, 0, "save_directory"), names)
                    for other in nodes
                    if _called(other, "save_pretrained")
                ]
                return Found("merge", [path], next((text for text in saved if text), "")) if path else None
    return None


def _average(nodes: list[ast.AST], names: dict[str, str]) -> Found | None:
    loaded, numbers = _loaded(nodes, names), _given(nodes, _number)
    for node in nodes:
        if isinstance(node, ast.BinOp):
            terms = _terms(node, numbers, 1.0)
            if terms and len(terms) >= 2 and all(name in loaded for name, _ in terms):
                saved = [
                    _text(_argument(other, place, "filename", "f", "save_directory"), names)
                    for name, place in (("save_file", 1), ("save", 1), ("save_pretrained", 0))
                    for other in nodes
                    if _called(other, name)
                ]
                writes = next((_folder(text) for text in saved if text), "")
                weights = [round(weight, 9) for _, weight in terms]
                return Found("average", [loaded[name] for name, _ in terms], writes, {"weights": weights})
    return None


def _loaded(nodes: list[ast.AST], names: dict[str, str]) -> dict[str, str]:
    """Names of state dicts and models -> the folder that they were read from."""
    loaded: dict[str, str] = {}
    for node in nodes:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        target, value = node.targets[0].id, node.value
        for name in ("load_file", "load", "load_state_dict", "from_pretrained"):
            if _called(value, name) and (path := _text(_argument(value, 0, "filename", "f"), names)):
                loaded[target] = _folder(path)
        source = value.func.value if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) else None
        if _called(value, "state_dict") and isinstance(source, ast.Name) and source.id in loaded:
            loaded[target] = loaded[source.id]
    return loaded


def _number(node: ast.expr, numbers: dict[str, float]) -> float | None:
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return numbers.get(name)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            first, second = _number(left, numbers), _number(right, numbers)
            return None if first is None or second is None else first - second
    return None


def _terms(node: ast.expr, numbers: dict[str, float], scale: float) -> list[tuple[str, float]] | None:
    """The models and weights of `a[k] * 0.5 + 0.5 * b[k]`, `(a[k] + b[k]) / 2` and the like."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _terms(left, numbers, scale), _terms(right, numbers, scale)
            return None if first is None or second is None else [*first, *second]
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            for one, other in ((left, right), (right, left)):
                if (number := _number(other, numbers)) is not None:
                    return _terms(one, numbers, scale * number)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            if number := _number(right, numbers):
                return _terms(left, numbers, scale / number)
        case ast.Subscript() | ast.Attribute():
            inner: ast.expr = node
            while isinstance(inner, ast.Subscript | ast.Attribute):
                inner = inner.value
            return [(inner.id, scale)] if isinstance(inner, ast.Name) else None
        case ast.Call(func=ast.Attribute(value=value, attr="float" | "to" | "cpu" | "cuda")):
            return _terms(value, numbers, scale)
    return None
