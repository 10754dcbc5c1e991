"""Follows what bash would do with a script, as far as it is known without running a program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from tree_sitter import Node

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import marks
from vlmrun.importers.shell.builtins import Status, join
from vlmrun.importers.shell.calls import REDIRECTS, Calls
from vlmrun.importers.shell.evaluator import Flow
from vlmrun.importers.shell.source import parse, text_of

_SHELLS = {"bash", "sh", "zsh", "source", ".", "sbatch"}


class Interpreter(Calls):
    """Reads one file; a further one reads what it calls, into the same `Reading`."""

    def run(self) -> None:
        """Follows the script to its end, or to where bash would stop."""
        self._batch_options()
        with suppress(Flow):
            self._body(parse(marks.encode(self.text)).children)

    def _batch_options(self) -> None:
        for found in re.finditer(r"^#SBATCH\s+(--?[\w-]+)(?:[=\s]+(\S+))?", self.text, re.MULTILINE):
            self.reading.batch[found[1].lstrip("-")] = found[2] or ""

    def _script(self, name: str, rest: list[str]) -> str | None:
        if name in _SHELLS:
            plain = [word for word in rest if not word.startswith("-")]
            if not plain and "-c" not in rest:
                return None
            return None if "-c" in rest else plain[0]
        return name if name.endswith(".sh") else None

    def _call_script(self, name: str, path: str, words: list[str]) -> Status:
        arguments = words[words.index(path) + 1 :]
        if marks.is_unknown(path):
            self.reading.note(self.file, self._line, f"calls {marks.shown(path)}: not known, so not read")
            return None
        place = join(self.scope.folder, path)
        if place in self.calls:
            raise ConfigError(
                f"a cycle of calls: {' -> '.join([*self.calls, place])}",
                f"{self.file}, line {self._line}",
                "import the script that starts the training",
            )
        text = self._load(place)
        if text is None:
            self.reading.note(self.file, self._line, f"calls {path}, which is not there or outside --root: not read")
            return None
        scope = self.scope if name in ("source", ".") else self.scope.copy()
        kept = scope.arguments, scope.script
        scope.arguments, scope.script = arguments or (kept[0] if scope is self.scope else []), path
        child = Interpreter(text, place, scope, self.reading, self._load)
        child.budget, child.calls = self.budget, (*self.calls, place)
        child.run()
        if scope is self.scope:
            scope.arguments, scope.script = kept
        return True

    def _do_redirected_statement(self, node: Node) -> Status:
        redirects = [child for child in node.children if child.type in REDIRECTS]
        inner = [child for redirect in redirects for child in redirect.children if child.type == "file_redirect"]
        document = next((self._heredoc(item) for item in redirects if item.type == "heredoc_redirect"), None)
        target = self._target([*redirects, *inner])
        body = next((child for child in node.children if child.type not in REDIRECTS and child.is_named), None)
        if body is None:
            return True
        if target is None or not _only_says(body):
            return self._do_command(body, document) if body.type == "command" else self._statement(body)
        kept, self._out = self._out, []
        try:
            status = self._do_command(body, document) if body.type == "command" else self._statement(body)
        finally:
            output, self._out = "".join(self._out), kept
        path, append = target
        if not marks.is_unknown(path) and len(output) < 200_000:
            self.reading.files[path] = (self.reading.files.get(path, "") if append else "") + output
        return status

    def _target(self, redirects: Sequence[Node]) -> tuple[str, bool] | None:
        """The file that output goes to, and whether it is added to."""
        for redirect in redirects:
            signs = [child.type for child in redirect.children]
            if redirect.type == "file_redirect" and {">", ">>", "&>"} & set(signs) and "file_descriptor" not in signs:
                path = self._words().text(text_of(redirect.children[-1]))
                return join(self.scope.folder, path), ">>" in signs
        return None

    def _heredoc(self, node: Node) -> str:
        """The text of a here-document, from its lines: blanks at its start count."""
        parts = {child.type: child for child in node.children}
        if "heredoc_body" not in parts or "heredoc_end" not in parts:
            return ""
        first, last = parts["heredoc_start"].start_point.row + 1, parts["heredoc_end"].start_point.row
        lines = marks.encode(self.text).split("\n")[first:last]
        if "<<-" in parts:
            lines = [line.lstrip("\t") for line in lines]
        body = "".join(f"{line}\n" for line in lines)
        start = text_of(parts["heredoc_start"])
        return marks.literal(body if start[:1] in "'\"\\" else self._words().document(body))


def _only_says(node: Node) -> bool:
    """Whether a statement starts no program: echo, printf and cat alone."""
    names = [text_of(child) for child in _commands(node)]
    return bool(names) and all(name in ("echo", "printf", "cat") for name in names)


def _commands(node: Node) -> list[Node]:
    if node.type == "command_name":
        return [node]
    return [name for child in node.children for name in _commands(child)]
