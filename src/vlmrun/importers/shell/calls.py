"""Commands: the shell's own, functions, and programs that would start."""

from __future__ import annotations

import posixpath

from tree_sitter import Node

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import builtins, marks
from vlmrun.importers.shell.assignments import Assignments
from vlmrun.importers.shell.builtins import Status, join
from vlmrun.importers.shell.commands import Command
from vlmrun.importers.shell.evaluator import Flow
from vlmrun.importers.shell.scope import MAX_DEPTH
from vlmrun.importers.shell.source import cause, text_of

_WRAPPERS = {"nohup", "exec", "time", "builtin", "env", "setsid", "stdbuf", "sudo", "command"}
REDIRECTS = {"file_redirect", "heredoc_redirect", "herestring_redirect"}


class Calls(Assignments):
    """Commands. Scripts and here-documents are a subclass's."""

    def _do_command(self, node: Node, document: str | None = None) -> Status:
        words, lines, local = [], [], {}
        for child in _joined(node):
            if child.type == "variable_assignment":
                name, value, _ = self._assignment(child.node)
                local[name] = value if isinstance(value, str) else " ".join(value)
            elif child.type not in REDIRECTS:
                fields = self._words().fields(child.text)
                words += fields
                lines += [child.node.start_point.row + 1 + self._offset] * len(fields)
            elif child.type == "heredoc_redirect":
                document = self._heredoc(child.node)
            elif child.type == "herestring_redirect":
                document = self._words().text(text_of(child.node).removeprefix("<<<").strip())
        self._note_unset()
        if not words:
            for name, value in local.items():
                self.scope.set(name, value)
            return True
        return self._call(words, lines, local, document)

    def _call(self, words: list[str], lines: list[int], local: dict[str, str], document: str | None = None) -> Status:
        name, rest = words[0], words[1:]
        if name in _WRAPPERS and rest:
            return self._unwrap(words, lines, local, document)
        if name in self.scope.functions:
            return self._function(name, rest)
        if name in builtins.CHANGE:
            return builtins.CHANGE[name](self.scope, rest)
        if name in ("break", "continue", "return", "exit"):
            raise Flow(name)
        if name == "eval":
            self._nested(" ".join(rest))
            return True
        if name in builtins.SAY or (name == "cat" and (document is not None or self._known_file(rest))):
            self._say(builtins.SAY[name](self.scope, rest) if name in builtins.SAY else self._cat(rest, document))
            return True
        script = self._script(name, rest)
        if script is not None:
            return self._call_script(name, script, words)
        if name[:1] == "-":
            self.reading.broken.append((self.file, cause(self.text, lines[0] - 1 - self._offset)))
            if self.scope.errexit:
                raise Flow("exit")
            return False
        return self._start(words, lines, local, document)

    def _start(self, words: list[str], lines: list[int], local: dict[str, str], document: str | None) -> Status:
        """A program would start here."""
        if self._out is not None:
            self._out.append(marks.unknown(" ".join(words)))
        elif words[0] == "read":
            for name in words[1:]:
                if not name.startswith("-"):
                    self.scope.set(name, self._unknown(f"read {name}"))
        elif posixpath.basename(words[0]) not in builtins.QUIET:
            env = {**self.scope.environment(), **local}
            self.reading.commands.append(
                Command(tuple(words), tuple(lines), env, self.scope.folder, self.file, document)
            )
        return True

    def _unwrap(self, words: list[str], lines: list[int], local: dict[str, str], document: str | None) -> Status:
        place = 1
        while place < len(words) and (words[place][:1] == "-" or (words[0] == "env" and "=" in words[place])):
            if "=" in words[place] and words[place][:1] != "-":
                name, _, value = words[place].partition("=")
                local = {**local, name: value}
            place += 1
        if place == len(words) or (words[0] == "command" and words[1] in ("-v", "-V")):
            return None
        return self._call(words[place:], lines[place:], local, document)

    def _function(self, name: str, arguments: list[str]) -> Status:
        self._depth += 1
        kept, self.scope.arguments = self.scope.arguments, arguments
        try:
            if self._depth > MAX_DEPTH:
                raise ConfigError(f"{name} calls itself", f"{self.file}, line {self._line}", "import a simpler script")
            return self._statement(self.scope.functions[name])
        except Flow as flow:
            if flow.word != "return":
                raise
            return True
        finally:
            self._depth -= 1
            self.scope.arguments = kept

    def _do_function_definition(self, node: Node) -> Status:
        self.scope.functions[text_of(node.named_children[0])] = node.named_children[-1]
        return True

    def _say(self, text: str) -> None:
        if self._out is not None:
            self._out.append(text)

    def _known_file(self, paths: list[str]) -> bool:
        return bool(paths) and all(join(self.scope.folder, path) in self.reading.files for path in paths)

    def _cat(self, paths: list[str], document: str | None) -> str:
        if document is not None and not [path for path in paths if path != "-"]:
            return document
        return "".join(self.reading.files.get(join(self.scope.folder, path), "") for path in paths)

    def _script(self, name: str, rest: list[str]) -> str | None:
        raise NotImplementedError

    def _call_script(self, name: str, path: str, words: list[str]) -> Status:
        raise NotImplementedError

    def _heredoc(self, node: Node) -> str:
        raise NotImplementedError


class _Word:
    """A child of a command; words that only a line break in the middle of a word separated are one."""

    def __init__(self, node: Node) -> None:
        self.node, self.type, self.text, self.end = node, node.type, text_of(node), node.end_byte


def _joined(node: Node) -> list[_Word]:
    words: list[_Word] = []
    source, start = node.text or b"", node.start_byte
    for child in node.children:
        if not child.is_named:
            continue
        gap = source[words[-1].end - start : child.start_byte - start] if words else b" "
        if gap in (b"\\\n", b"") and words[-1].type not in ("variable_assignment", *REDIRECTS):
            words[-1].text += text_of(child)
            words[-1].end = child.end_byte
        else:
            words.append(_Word(child))
    return words
