"""Words: quotes, variables and substitutions become the strings that a program would be given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from vlmrun.importers.shell import arithmetic, marks, parameters, patterns
from vlmrun.importers.shell.scope import MAX_DEPTH, Scope

Run = Callable[[str], str]  # a command substitution's source -> its output


class Piece(NamedTuple):
    """Part of a word: `quoted` counts even when empty, `split` is cut at blanks, `break` ends a field ("$@")."""

    text: str
    kind: Literal["fixed", "quoted", "split", "break"]


class Words:
    """Expands words in a scope."""

    def __init__(self, scope: Scope, run: Run, depth: int = 0) -> None:
        self.scope, self._run, self._depth = scope, run, depth

    def fields(self, raw: str) -> list[str]:
        """A word of a command, as the arguments it becomes: none, one or several."""
        return [field for word in patterns.braces(raw) for field in _split(self.pieces(word))]

    def text(self, raw: str) -> str:
        """A word where nothing is split: an assigned value, a file name, a pattern."""
        return "".join(" " if piece.kind == "break" else piece.text for piece in self.pieces(raw))

    def document(self, raw: str) -> str:
        """A here-document whose end mark has no quotes: variables and substitutions only."""
        return "".join(piece.text for piece in self.pieces(raw, inside=True, document=True))

    def pattern(self, raw: str) -> str:
        """A word as a shell pattern: what stood in quotes is literal."""
        escaped = (
            "".join(f"\\{char}" if char in "*?[]\\" else char for char in piece.text)
            if piece.kind == "quoted"
            else piece.text
            for piece in self.pieces(raw)
        )
        return "".join(escaped)

    def arithmetic(self, raw: str) -> str:
        """`$((raw))`, as text."""
        text = self.text(raw)
        try:
            return str(arithmetic.evaluate(text, self.scope))
        except arithmetic.Unknown:
            return marks.unknown(f"(({marks.shown(raw)}))")

    def deeper(self) -> Words:
        """For a word inside a word."""
        return Words(self.scope, self._run, self._depth + 1)

    def pieces(self, raw: str, inside: bool = False, document: bool = False) -> Iterator[Piece]:
        """The parts of a word, in order; `inside` double quotes."""
        if self._depth > MAX_DEPTH:
            yield Piece(marks.unknown(raw[:40]), "fixed")
            return
        place = 0
        while place < len(raw):
            char, start = raw[place], place
            if char == "$" and place + 1 < len(raw):
                place, found = self._dollar(raw, place, inside)
                yield from found
            elif char == "`":
                place = closing(raw, place + 1, "`")
                command = raw[start + 1 : place - 1].replace("\\`", "`").replace("\\$", "$")
                yield Piece(self._run(command), "fixed" if inside else "split")
            elif inside:
                place, text = _in_quotes(raw, place, document)
                yield Piece(marks.literal(text), "fixed")
            elif char == "'":
                place = raw.find("'", place + 1) + 1 or len(raw)
                yield Piece(marks.literal(raw[start + 1 : place - 1]), "quoted")
            elif char == '"':
                place = closing(raw, place + 1, '"')
                inner = list(self.pieces(raw[start + 1 : place - 1], inside=True))
                # "$@" of nothing is no argument at all; any other pair of quotes is one.
                if not inner:
                    yield Piece("", "quoted")
                yield from (piece._replace(kind="quoted") if piece.kind == "fixed" else piece for piece in inner)
            elif char == "\\":
                place += 2
                text = raw[start + 1 : place]
                yield Piece("", "fixed") if text == "\n" else Piece(text, "quoted")
            elif char == "~" and start == 0 and raw[1:2] in ("", "/"):
                place += 1
                yield Piece(self.scope.get("HOME") or "~", "fixed")
            else:
                place += 1
                while place < len(raw) and raw[place] not in "$`'\"\\~":
                    place += 1
                text = "".join(marks.blank(char) or char for char in raw[start:place])
                yield Piece(text, "fixed")

    def _dollar(self, raw: str, place: int, inside: bool) -> tuple[int, list[Piece]]:
        """What begins with `$`: the place behind it, and its pieces."""
        kind: Literal["fixed", "split"] = "fixed" if inside else "split"
        if raw.startswith("$((", place) and (end := closing(raw, place + 2, ")")) and raw[end - 2 : end] == "))":
            return end, [Piece(self.deeper().arithmetic(raw[place + 3 : end - 2]), kind)]
        follows = raw[place + 1]
        if follows == "(":
            end = closing(raw, place + 2, ")")
            return end, [Piece(self._run(raw[place + 2 : end - 1]), kind)]
        if follows == "'" and not inside:
            end = closing(raw, place + 2, "'")
            return end, [Piece(_ansi(marks.literal(raw[place + 2 : end - 1])), "quoted")]
        if follows == '"' and not inside:
            return place + 1, []
        if follows == "{":
            end = closing(raw, place + 2, "}")
            body = raw[place + 2 : end - 1]
        else:
            end = place + 1 + parameters.name_length(raw[place + 1 :])
            body = raw[place + 1 : end]
            if not body:
                return place + 1, [Piece("$", "fixed")]
        values = parameters.expand(body, self.deeper())
        if inside and isinstance(values, list) and (body.startswith("*") or "[*]" in body):
            values = " ".join(values)
        if isinstance(values, str):
            return end, [Piece(values, kind)]
        joined: list[Piece] = []
        for value in values:
            joined += [Piece("", "break")] if joined else []
            joined.append(Piece(value, kind))
        return end, joined if joined or not inside else [Piece("", "break")]


def closing(raw: str, place: int, end: str) -> int:
    """The place behind the character that closes what was opened before `place`, quotes and nesting minded."""
    opening = {")": "(", "}": "{"}.get(end, "")
    depth = 0
    while place < len(raw):
        char = raw[place]
        if char == "\\" and end != "'":
            place += 1
        elif char == end and depth == 0:
            return place + 1
        elif char == end:
            depth -= 1
        elif char == opening:
            depth += 1
        elif end == "'":
            pass
        elif char == "'" and end != '"' and end != "`":
            place = raw.find("'", place + 1) if raw.find("'", place + 1) >= 0 else len(raw)
        elif char == '"' and end not in ('"', "`"):
            place = closing(raw, place + 1, '"') - 1
        elif raw.startswith("${", place) and end != "`":
            place = closing(raw, place + 2, "}") - 1
        elif raw.startswith("$(", place) and end != "`":
            place = closing(raw, place + 2, ")") - 1
        place += 1
    return len(raw) + 1


def _in_quotes(raw: str, place: int, document: bool) -> tuple[int, str]:
    """Plain text inside double quotes, up to the next `$` or backquote: the place behind it, and what it says."""
    if raw[place] == "\\" and place + 1 < len(raw):
        pair = raw[place : place + 2]
        if pair[1] == "\n":
            return place + 2, ""
        return place + 2, pair[1] if pair[1] in ("$`\\" if document else '$`"\\') else pair
    end = place + 1
    while end < len(raw) and raw[end] not in "$`\\":
        end += 1
    return end, raw[place:end]


def _ansi(text: str) -> str:
    """`$'...'`: the escapes of C that scripts use."""
    simple = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
    out, place = [], 0
    while place < len(text):
        if text[place] == "\\" and text[place + 1 : place + 2] in simple:
            out.append(simple[text[place + 1]])
            place += 2
        else:
            out.append(text[place])
            place += 1
    return "".join(out)


def _split(pieces: Iterator[Piece]) -> list[str]:
    """Pieces as fields: cut at the blanks of unquoted values, and where "$@" says."""
    fields: list[str] = []
    current: str | None = None
    for piece in pieces:
        if piece.kind == "break":
            if current is not None:
                fields.append(current)
            current = None
        elif piece.kind == "split":
            parts = piece.text.split()
            if current is not None and piece.text and (not parts or piece.text[0].isspace()):
                fields.append(current)
                current = None
            for number, part in enumerate(parts):
                if number:
                    fields.append(current or "")
                    current = None
                current = (current or "") + part
            if parts and piece.text[-1].isspace() and current is not None:
                fields.append(current)
                current = None
        elif piece.text or piece.kind == "quoted":
            current = (current or "") + piece.text
    return fields if current is None else [*fields, current]
