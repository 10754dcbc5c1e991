"""Merging and averaging in Python, recognized by the syntax tree; nothing of it is run."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

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
    names = _strings(nodes)
    merge, average = _merge(nodes, names), _average(nodes, names)
    return [found for found in (merge, average) if found is not None]


def _strings(nodes: list[ast.AST]) -> dict[str, str]:
    """Names that are given a text."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            text = _text(node.value, found)
            if text is not None:
                found[node.targets[0].id] = text
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
    loaded: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            for name in ("load_file", "load", "load_state_dict"):
                if _called(node.value, name):
                    path = _text(_argument(node.value, 0, "filename", "f"), names)
                    if path:
                        loaded[node.targets[0].id] = _folder(path)
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            terms = _terms(node)
            if terms and len(terms) >= 2 and all(name in loaded for name, _ in terms):
                saved = [_text(_argument(other, 1, "filename", "f"), names) for other in nodes
                         if _called(other, "save_file") or _called(other, "save")]  # fmt: skip
                writes = next((_folder(text) for text in saved if text), "")
                weights = [weight for _, weight in terms]
                return Found("average", [loaded[name] for name, _ in terms], writes, {"weights": weights})
    return None


def _terms(node: ast.expr) -> list[tuple[str, float]] | None:
    """The models and weights of `a[k] * 0.5 + 0.5 * b[k]`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _terms(node.left), _terms(node.right)
        return None if left is None or right is None else [*left, *right]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(other, ast.Constant) and isinstance(other.value, int | float):
                while isinstance(one, ast.Subscript | ast.Attribute):
                    one = one.value
                if isinstance(one, ast.Name):
                    return [(one.id, float(other.value))]
    return None
