"""A script's text as a syntax tree, and continuations that are broken: where, why, and how they were meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import marks

MAX_SIZE = 1_000_000
_QUOTED = {"string", "raw_string", "ansi_c_string", "heredoc_body"}
_TRAP = re.compile(r"\\[ \t]+(#.*)?$")


@dataclass(frozen=True)
class Broken:
    """A continuation that bash does not see."""

    line: int
    cause: str


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_bash.language()))


def parse(source: str) -> Node:
    """The tree of a script whose escaped blanks are encoded (`marks.encode`)."""
    return _parser().parse(re.sub(r"(?<!\\)\\\n?\Z", "", source).encode()).root_node


def text_of(node: Node) -> str:
    """The source of a node."""
    return (node.text or b"").decode(errors="replace")


def checked(content: bytes, where: str) -> str:
    """The text of a script.

    Raises:
        ConfigError: when it is none.
    """
    fix = "give the file that starts the training: vlmrun import train.sh"
    if len(content) > MAX_SIZE:
        raise ConfigError(f"{len(content):,} bytes are no launch script; the limit is {MAX_SIZE:,}", where, fix)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not a script: byte {error.start} is not UTF-8", where, fix) from None
    if "\0" in text or marks.PRIVATE.search(text):
        raise ConfigError("not a script: it holds characters that no script has", where, fix)
    first = text.split("\n", 1)[0]
    if first.startswith("#!") and not re.search(r"\b(ba|z|k|da)?sh\b", first):
        raise ConfigError(f"not a shell script: its first line is {first.strip()!r}", where, fix)
    return text


def traps(text: str) -> list[Broken]:
    """Backslashes that end no line because something follows them, by the grammar outside quotes and comments."""
    lines = text.split("\n")
    suspects = [number for number, line in enumerate(lines) if _TRAP.search(line)]
    if not suspects:
        return []
    skipped = {row for node in _walk(parse(text)) if node.type in _QUOTED for row in _inner_rows(node)}
    found = []
    for number in suspects:
        comment = _TRAP.search(lines[number])
        if number in skipped or lines[number].lstrip().startswith("#") or comment is None:
            continue
        what = "a comment" if comment[1] else "a blank"
        found.append(Broken(number + 1, f"{what} behind the backslash ends the command there"))
    return found


def _inner_rows(node: Node) -> range:
    return range(node.start_point.row, node.end_point.row)


def _walk(node: Node) -> Iterator[Node]:
    todo = [node]
    while todo:
        current = todo.pop()
        yield current
        todo += reversed(current.children)


def as_meant(text: str) -> str:
    """The script with its continuations fixed; lines keep their numbers."""
    lines = text.replace("\r\n", "\n").split("\n")
    for broken in traps("\n".join(lines)):
        lines[broken.line - 1] = _TRAP.sub(r"\\", lines[broken.line - 1])
    for _ in range(min(len(lines), 50)):
        orphans = _orphans("\n".join(lines))
        joined = [_join(lines, row) for row in orphans]
        if not any(joined):
            break
    return "\n".join(lines)


def _orphans(text: str) -> list[int]:
    """Rows of commands that are called like an option: what a broken continuation leaves behind."""
    nodes = _walk(parse(marks.encode(text)))
    return sorted({node.start_point.row for node in nodes if node.type == "command_name" and text_of(node)[:1] == "-"})


def _join(lines: list[str], row: int) -> bool:
    """Ties a row to the command before it: comments and empty lines between are put behind the row. True if changed."""
    above = row - 1
    while above >= 0 and (not lines[above].strip(" \t\\") or lines[above].lstrip().startswith("#")):
        above -= 1
    if above < 0 or lines[row].lstrip()[:1] != "-":
        return False
    between = lines[above + 1 : row]
    lines[above + 1 : row] = ["\\"] * len(between)
    if not lines[above].rstrip().endswith("\\"):
        lines[above] += " \\"
    elif not between:
        return False
    return True


def cause(text: str, row: int) -> Broken:
    """Why a command that begins with `-` at this row (from 0) stands alone."""
    lines = text.split("\n")
    for broken in traps(text):
        if broken.line == row:
            return broken
    above = min(row, len(lines)) - 1
    if above >= 0 and lines[above].lstrip().startswith("#"):
        return Broken(above + 1, "a comment line ends the command before it")
    if above >= 0 and not lines[above].strip():
        return Broken(above + 1, "an empty line ends the command before it")
    return Broken(above + 1, "the backslash at the end of the line is missing")
