"""`test`, `[ ]` and `[[ ]]` over what is known. None: it depends on a program or a file."""

from __future__ import annotations

import re
from collections.abc import Callable

from vlmrun.importers.shell import arithmetic, marks, patterns
from vlmrun.importers.shell.scope import Scope

_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b,
    "-ne": lambda a, b: a != b,
    "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b,
    "-ge": lambda a, b: a >= b,
}


class Condition:
    """One test, read from its arguments by recursive descent: or, and, not, parentheses, primaries."""

    def __init__(self, arguments: list[str], scope: Scope, patterned: bool = False) -> None:
        self._rest, self._scope, self._patterned = list(arguments), scope, patterned

    def value(self) -> bool | None:
        """True, False, or None for what is not known."""
        if not self._rest:
            return False
        result = self._or()
        return None if self._rest else result

    def _take(self, *options: str) -> bool:
        if self._rest and self._rest[0] in options:
            self._rest.pop(0)
            return True
        return False

    def _or(self) -> bool | None:
        result = self._and()
        while self._take("-o", "||"):
            other = self._and()
            result = True if result or other else (None if result is None or other is None else False)
        return result

    def _and(self) -> bool | None:
        result = self._not()
        while self._take("-a", "&&"):
            other = self._not()
            result = False if result is False or other is False else (None if None in (result, other) else True)
        return result

    def _not(self) -> bool | None:
        turned = False
        while len(self._rest) > 1 and self._rest[0] == "!":
            self._rest.pop(0)
            turned = not turned
        result = self._primary()
        return result if result is None or not turned else not result

    def _primary(self) -> bool | None:
        if len(self._rest) >= 3 and self._is_binary(self._rest[1]):
            left, sign, right = self._rest[:3]
            del self._rest[:3]
            return self._compare(left, sign, right)
        if len(self._rest) > 1 and self._take("("):
            result = self._or()
            return result if self._take(")") else None
        if len(self._rest) >= 2 and re.fullmatch(r"-[a-zA-Z]", self._rest[0]):
            sign, operand = self._rest[:2]
            del self._rest[:2]
            return self._unary(sign, operand)
        word = self._rest.pop(0) if self._rest else ""
        return None if marks.is_unknown(word) else word != ""

    @staticmethod
    def _is_binary(word: str) -> bool:
        return word in ("=", "==", "!=", "<", ">", "=~") or word in _NUMBERS

    def _unary(self, sign: str, operand: str) -> bool | None:
        if sign in ("-v",):
            return self._scope.get(operand) is not None
        if sign not in ("-n", "-z") or marks.is_unknown(operand):
            return None
        return (operand != "") == (sign == "-n")

    def _compare(self, left: str, sign: str, right: str) -> bool | None:
        if marks.is_unknown(left) or marks.is_unknown(right) or sign == "=~":
            return None
        if sign in _NUMBERS:
            try:
                return _NUMBERS[sign](arithmetic.evaluate(left, self._scope), arithmetic.evaluate(right, self._scope))
            except arithmetic.Unknown:
                return None
        if sign in ("<", ">"):
            return left < right if sign == "<" else left > right
        if self._patterned and not patterns.bounded(left, right):
            return None
        equal = bool(patterns.compiled(right).fullmatch(left)) if self._patterned else left == right
        return equal == (sign != "!=")
