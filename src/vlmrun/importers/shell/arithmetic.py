"""Shell arithmetic on whole numbers, read with Python's own grammar and computed here, operator by operator."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from vlmrun.importers.shell.scope import Scope

_LIMIT = 1 << 63


class Unknown(Exception):
    """The value depends on a program, or is none that whole numbers have."""


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_BINARY: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Mod: lambda a, b: a - _divide(a, b) * b,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_COMPARE: dict[type[ast.AST], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ASSIGNED = re.compile(r"^\s*([A-Za-z_]\w*)\s*([-+*/%]?)=(?!=)(.*)$", re.DOTALL)
_STEPPED = re.compile(r"^\s*(?:(\+\+|--)\s*([A-Za-z_]\w*)|([A-Za-z_]\w*)\s*(\+\+|--))\s*$")


def evaluate(text: str, scope: Scope) -> int:
    """The value of an expression whose `$` are expanded already; assignments in it take effect.

    Raises:
        Unknown: when it is no arithmetic of known whole numbers.
    """
    if stepped := _STEPPED.match(text):
        name, sign = stepped[2] or stepped[3], stepped[1] or stepped[4]
        before = _variable(name, scope)
        scope.set(name, str(before + (1 if sign == "++" else -1)))
        return before if stepped[3] else before + (1 if sign == "++" else -1)
    if assigned := _ASSIGNED.match(text):
        name, sign, rest = assigned.groups()
        value = evaluate(f"{name} {sign} ({rest})" if sign else rest, scope)
        scope.set(name, str(value))
        return value
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
    try:
        tree = ast.parse(re.sub(r"\b0+(?=\d)", "", text).strip() or "0", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unknown(text) from error
    return _value(tree.body, scope, 0)


def _value(node: ast.AST, scope: Scope, depth: int) -> int:
    if depth > 60:
        raise Unknown("too deep")
    match node:
        case ast.Constant(value=int() as number):
            result = int(number)
        case ast.Name(id=name):
            result = _variable(name, scope)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left, scope, depth + 1), _value(right, scope, depth + 1)
            if b == 0 and isinstance(op, ast.Div | ast.Mod):
                raise Unknown("division by 0")
            result = _BINARY[type(op)](a, b)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand, scope, depth + 1)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            result = int(not _value(operand, scope, depth + 1))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            result = int(_COMPARE[type(op)](_value(left, scope, depth + 1), _value(right, scope, depth + 1)))
        case ast.BoolOp(op=op, values=values):
            known = [_value(value, scope, depth + 1) for value in values]
            result = int(all(known) if isinstance(op, ast.And) else any(known))
        case _:
            raise Unknown("no shell arithmetic")
    if abs(result) >= _LIMIT:
        raise Unknown("too large")
    return result


def _variable(name: str, scope: Scope) -> int:
    value = (scope.get(name) or "0").strip()
    if not re.fullmatch(r"-?\d{1,18}", value):
        raise Unknown(name)
    return int(value)
