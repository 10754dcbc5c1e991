"""What every statement of a script needs: its scope, its words, a budget, and where findings are listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tree_sitter import Node

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import arithmetic, marks
from vlmrun.importers.shell.builtins import Status
from vlmrun.importers.shell.commands import Reading
from vlmrun.importers.shell.scope import MAX_DEPTH, Budget, Scope
from vlmrun.importers.shell.source import Broken, parse, text_of
from vlmrun.importers.shell.words import Words

Load = Callable[[str], str | None]  # a path, as the script names it -> the text of a script beside it


class Flow(Exception):
    """break, continue, return or exit."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Evaluator:
    """Reads statements by their type: subclasses add a `_do_TYPE` for each."""

    def __init__(self, text: str, file: str, scope: Scope, reading: Reading, load: Load) -> None:
        self.text, self.file, self.scope, self.reading, self._load = text, file, scope, reading, load
        self.budget = Budget()
        self.calls: tuple[str, ...] = (file,)
        self._out: list[str] | None = None  # where output goes inside $( )
        self._depth = 0
        self._document: str | None = None
        self._line = 1
        self._offset = 0  # rows before the text that is being read: of an `eval` or a $( )

    def _nested(self, source: str, scope: Scope | None = None) -> None:
        """Runs text that a value holds: `eval`, `$( )`."""
        if self._depth >= MAX_DEPTH:
            raise ConfigError(
                f"commands inside one another more than {MAX_DEPTH} deep",
                f"{self.file}, line {self._line}",
                "import the part that starts the training, as a file of its own",
            )
        before = (self.scope, self._offset, self.text)
        self.scope, self._offset, self.text = scope or self.scope, self._line - 1, source
        self._depth += 1
        try:
            self._body(parse(source).children)
        finally:
            self.scope, self._offset, self.text = before
            self._depth -= 1

    def _substitute(self, source: str) -> str:
        """The output of `$( )`; unknown when a program has a part in it."""
        kept, self._out = self._out, []
        try:
            self._nested(source, self.scope.copy())
        except Flow:
            pass
        finally:
            output, self._out = "".join(self._out), kept
        if marks.is_unknown(output):
            return self._unknown(source)
        return output.rstrip("\n")

    def _unknown(self, source: str) -> str:
        value = marks.unknown(source)
        self.reading.note(self.file, self._line, f"$({marks.causes(value)[0]}) is known only by running it")
        return value

    def _body(self, nodes: Sequence[Node]) -> Status:
        status: Status = True
        for node in nodes:
            if not node.is_named or node.type in ("comment", "heredoc_body"):
                continue
            if node.has_error:
                line = _error_line(node) + self._offset
                self.reading.broken.append((self.file, Broken(line, "this cannot be read as shell; bash stops here")))
                raise Flow("exit")
            status = self._statement(node)
        return status

    def _statement(self, node: Node) -> Status:
        self._line = node.start_point.row + 1 + self._offset
        self.budget.spend(self._line)
        handler = getattr(self, f"_do_{node.type}", None)
        if handler is None:
            self.reading.note(self.file, self._line, f"{node.type.replace('_', ' ')} is passed over")
            return True
        status: Status = handler(node)
        return status

    def _words(self) -> Words:
        return Words(self.scope, self._substitute)

    def _fields(self, node: Node) -> list[str]:
        return self._words().fields(text_of(node))

    def _note_unset(self) -> None:
        for name, line in self.scope.unset.items():
            if line == 0:
                self.scope.unset[name] = self._line
                self.reading.note(self.file, self._line, f"${name} is set nowhere, so it is empty")

    def _assume(self, node: Node, effect: str) -> bool:
        """What is not known counts as false, and is listed."""
        text = marks.shown(marks.literal(text_of(node)))[:80]
        self.reading.note(self.file, self._line, f"whether `{text}` holds is not known; taken as no {effect}".strip())
        return False

    def _truth(self, raw: str) -> Status:
        try:
            return arithmetic.evaluate(self._words().text(raw), self.scope) != 0
        except arithmetic.Unknown:
            return None


def _error_line(node: Node) -> int:
    while True:
        inner = next((child for child in node.children if child.has_error), None)
        if inner is None or node.is_error or node.is_missing:
            return node.start_point.row + 1
        node = inner
