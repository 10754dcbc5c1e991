"""Walks a script's tree and follows what bash would do, as far as it is known without running a program."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from tree_sitter import Node

from vlmrun.errors import ConfigError
from vlmrun.importers.shell import arithmetic, builtins, marks
from vlmrun.importers.shell.builtins import Status, join
from vlmrun.importers.shell.commands import Command, Reading
from vlmrun.importers.shell.conditions import Condition
from vlmrun.importers.shell.scope import MAX_DEPTH, Budget, Scope
from vlmrun.importers.shell.source import Broken, cause, parse, text_of
from vlmrun.importers.shell.words import Words

Load = Callable[[str], str | None]  # a path, as the script names it -> the text of a script beside it
_SHELLS = {"bash", "sh", "zsh", "source", ".", "sbatch"}
_WRAPPERS = {"nohup", "exec", "time", "builtin", "env", "setsid", "stdbuf", "sudo", "command"}
_TAKES = {"word", "string", "raw_string", "ansi_c_string", "translated_string", "concatenation", "number", "regex",
          "simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion",
          "brace_expression", "extglob_pattern", "variable_name", "test_operator", "special_variable_name"}  # fmt: skip
_REDIRECTS = {"file_redirect", "heredoc_redirect", "herestring_redirect"}


class _Flow(Exception):
    """break, continue, return or exit."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Interpreter:
    """Reads one file; `child` reads what it calls, into the same `Reading`."""

    def __init__(self, text: str, file: str, scope: Scope, reading: Reading, load: Load) -> None:
        self.text, self.file, self.scope, self.reading, self._load = text, file, scope, reading, load
        self.budget = Budget()
        self.calls: tuple[str, ...] = (file,)
        self._out: list[str] | None = None  # where output goes inside $( )
        self._depth = 0
        self._document: str | None = None
        self._line = 1
        self._offset = 0  # rows before the text that is being read: of an `eval` or a $( )

    # -- whole texts

    def run(self) -> None:
        """Follows the script to its end, or to where bash would stop."""
        self._batch_options()
        with suppress(_Flow):
            self._body(parse(marks.encode(self.text)).children)

    def _batch_options(self) -> None:
        for found in re.finditer(r"^#SBATCH\s+(--?[\w-]+)(?:[=\s]+(\S+))?", self.text, re.MULTILINE):
            self.reading.batch[found[1].lstrip("-")] = found[2] or ""

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
        except _Flow:
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

    # -- statements

    def _body(self, nodes: Sequence[Node]) -> Status:
        status: Status = True
        for node in nodes:
            if not node.is_named or node.type in ("comment", "heredoc_body"):
                continue
            if node.has_error:
                line = _error_line(node) + self._offset
                self.reading.broken.append((self.file, Broken(line, "this cannot be read as shell; bash stops here")))
                raise _Flow("exit")
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

    def _do_variable_assignment(self, node: Node) -> Status:
        name, value, append = self._assignment(node)
        target = node.children[0]
        if target.type == "subscript" and isinstance(value, str):
            items = self.scope.items(name)
            index = self._words().arithmetic(text_of(target).partition("[")[2].rstrip("]"))
            if index.isdecimal() and int(index) < 1000:
                items += [""] * (int(index) + 1 - len(items))
                items[int(index)] = value
                self.scope.set(name, items)
            return True
        builtins.assign(self.scope, name, value, append=append)
        return True

    def _do_variable_assignments(self, node: Node) -> Status:
        return self._body(node.children)

    def _assignment(self, node: Node) -> tuple[str, str | list[str], bool]:
        name = text_of(node.children[0]).partition("[")[0]
        append = any(child.type == "+=" for child in node.children)
        value = node.children[-1] if node.children[-1].type not in ("=", "+=") else None
        if value is None:
            return name, "", append
        if value.type == "array":
            return name, [field for child in value.named_children for field in self._fields(child)], append
        return name, self._words().text(text_of(value)), append

    def _do_declaration_command(self, node: Node) -> Status:
        exports = text_of(node.children[0]) == "export" or any(text_of(child) == "-x" for child in node.children)
        for child in node.named_children:
            if child.type == "variable_assignment":
                self._do_variable_assignment(child)
                name = text_of(child.children[0])
            else:
                words = self._fields(child) if child.type != "variable_name" else [text_of(child)]
                name = words[0] if words else ""
                if "=" in name:
                    name, _, value = name.partition("=")
                    self.scope.set(name, value)
            if exports and not name.startswith("-"):
                self.scope.exported.add(name)
        return True

    def _do_unset_command(self, node: Node) -> Status:
        return builtins.unset(self.scope, [text_of(child) for child in node.named_children])

    def _do_command(self, node: Node, document: str | None = None) -> Status:
        words, lines, local = [], [], {}
        for child in _joined(node):
            if child.type == "variable_assignment":
                name, value, _ = self._assignment(child.node)
                local[name] = value if isinstance(value, str) else " ".join(value)
            elif child.type not in _REDIRECTS:
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
            raise _Flow(name)
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
                raise _Flow("exit")
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
        except _Flow as flow:
            if flow.word != "return":
                raise
            return True
        finally:
            self._depth -= 1
            self.scope.arguments = kept

    def _do_function_definition(self, node: Node) -> Status:
        self.scope.functions[text_of(node.named_children[0])] = node.named_children[-1]
        return True

    # -- scripts that call scripts

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

    # -- output

    def _say(self, text: str) -> None:
        if self._out is not None:
            self._out.append(text)

    def _known_file(self, paths: list[str]) -> bool:
        return bool(paths) and all(join(self.scope.folder, path) in self.reading.files for path in paths)

    def _cat(self, paths: list[str], document: str | None) -> str:
        if document is not None and not [path for path in paths if path != "-"]:
            return document
        return "".join(self.reading.files.get(join(self.scope.folder, path), "") for path in paths)

    def _do_redirected_statement(self, node: Node) -> Status:
        redirects = [child for child in node.children if child.type in _REDIRECTS]
        inner = [child for redirect in redirects for child in redirect.children if child.type == "file_redirect"]
        document = next((self._heredoc(item) for item in redirects if item.type == "heredoc_redirect"), None)
        target = self._target([*redirects, *inner])
        body = next((child for child in node.children if child.type not in _REDIRECTS and child.is_named), None)
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

    # -- structure

    def _do_program(self, node: Node) -> Status:
        return self._body(node.children)

    def _do_compound_statement(self, node: Node) -> Status:
        if node.children[0].type == "((":
            return self._truth(text_of(node)[2:-2])
        return self._body(node.children)

    _do_do_group = _do_program

    def _do_subshell(self, node: Node) -> Status:
        kept, self.scope = self.scope, self.scope.copy()
        try:
            return self._body(node.children)
        except _Flow as flow:
            if flow.word != "exit":
                raise
            return True
        finally:
            self.scope = kept

    def _do_pipeline(self, node: Node) -> Status:
        if self._out is not None:
            self._out.append(marks.unknown(text_of(node)))
            return True
        kept, self.scope = self.scope, self.scope.copy()
        try:
            return self._body(node.children)
        finally:
            self.scope = kept

    def _do_list(self, node: Node) -> Status:
        left, sign, right = node.children[0], node.children[1].type, node.children[-1]
        status = self._statement(left)
        if status is None:
            status = self._assume(left, "")
        if status if sign == "&&" else not status:
            return self._statement(right)
        return status

    def _do_negated_command(self, node: Node) -> Status:
        status = self._statement(node.named_children[-1])
        return None if status is None else not status

    def _do_test_command(self, node: Node) -> Status:
        if node.children[0].type == "((":
            return self._truth(text_of(node)[2:-2])
        double = node.children[0].type == "[["
        raw = _leaves(node)[1:-1]
        words: list[str] = []
        for place, leaf in enumerate(raw):
            if double and place and raw[place - 1] in ("=", "==", "!="):
                words.append(self._words().pattern(leaf))
            else:
                words += [self._words().text(leaf)] if double else self._words().fields(leaf)
        self._note_unset()
        return Condition(words, self.scope, patterned=double).value()

    def _truth(self, raw: str) -> Status:
        try:
            return arithmetic.evaluate(self._words().text(raw), self.scope) != 0
        except arithmetic.Unknown:
            return None

    def _condition(self, nodes: Sequence[Node]) -> bool:
        status = self._body(nodes)
        return self._assume(nodes[0], "so the branch is passed over") if status is None else status

    def _assume(self, node: Node, effect: str) -> bool:
        """What is not known counts as false, and is listed."""
        text = marks.shown(marks.literal(text_of(node)))[:80]
        self.reading.note(self.file, self._line, f"whether `{text}` holds is not known; taken as no {effect}".strip())
        return False

    def _do_if_statement(self, node: Node) -> Status:
        for branch in [node, *(child for child in node.children if child.type in ("elif_clause", "else_clause"))]:
            children = [child for child in branch.children if child.type not in ("elif_clause", "else_clause")]
            if branch.type == "else_clause":
                return self._body(children)
            then = next(place for place, child in enumerate(children) if child.type == "then")
            condition = [child for child in children[1:then] if child.is_named and child.type != "comment"]
            if condition and self._condition(condition):
                return self._body(children[then + 1 :])
        return True

    def _do_for_statement(self, node: Node) -> Status:
        children = list(node.named_children)
        name, group = text_of(children[0]), children[-1]
        has_list = any(child.type == "in" for child in node.children)
        values = (
            [field for child in children[1:-1] for field in self._fields(child)] if has_list else self.scope.arguments
        )
        for value in list(values):
            self.scope.set(name, value)
            if not self._again(group):
                break
        return True

    def _do_c_style_for_statement(self, node: Node) -> Status:
        head = re.match(r"for\s*\(\((.*?)\)\)\s*(?:;|do|\{|\n)", text_of(node), re.DOTALL)
        parts = head[1].split(";") if head else []
        if len(parts) != 3:
            return self._assume(node, "so the loop is passed over")
        self._truth(parts[0])
        while True:
            going_on = True if not parts[1].strip() else self._truth(parts[1])
            if going_on is None:
                return self._assume(node, "so the loop is passed over")
            if not going_on or not self._again(node.named_children[-1]):
                return True
            self._truth(parts[2])

    def _do_while_statement(self, node: Node) -> Status:
        group = node.named_children[-1]
        condition = [child for child in node.named_children[:-1] if child.type != "comment"]
        until = node.children[0].type == "until"
        while True:
            self.budget.spend(self._line)
            status = self._body(condition)
            if status is None or all(
                child.type == "command" and text_of(child).startswith("read") for child in condition
            ):
                return self._assume(condition[0], "so the loop is passed over")
            if status == until or not self._again(group):
                return True

    def _again(self, group: Node) -> bool:
        """One turn of a loop; False after `break`."""
        try:
            self._statement(group)
        except _Flow as flow:
            if flow.word not in ("break", "continue"):
                raise
            return flow.word == "continue"
        return True

    def _do_case_statement(self, node: Node) -> Status:
        value = self._words().text(text_of(node.named_children[0]))
        for item in node.named_children[1:]:
            if item.type != "case_item":
                continue
            ends = next((place for place, child in enumerate(item.children) if child.type == ")"), 0)
            options = [self._words().pattern(text_of(child)) for child in item.children[:ends] if child.is_named]
            if any(Condition([value, "=", option], self.scope, patterned=True).value() for option in options):
                return self._body(item.children[ends + 1 :])
        return True

    # -- words

    def _words(self) -> Words:
        return Words(self.scope, self._substitute)

    def _fields(self, node: Node) -> list[str]:
        return self._words().fields(text_of(node))

    def _note_unset(self) -> None:
        for name, line in self.scope.unset.items():
            if line == 0:
                self.scope.unset[name] = self._line
                self.reading.note(self.file, self._line, f"${name} is set nowhere, so it is empty")


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
        if gap in (b"\\\n", b"") and words[-1].type not in ("variable_assignment", *_REDIRECTS):
            words[-1].text += text_of(child)
            words[-1].end = child.end_byte
        else:
            words.append(_Word(child))
    return words


def _leaves(node: Node) -> list[str]:
    """The words of a test, operators and brackets among them."""
    if node.type in _TAKES or not node.children:
        return [text_of(node)]
    return [leaf for child in node.children for leaf in _leaves(child)]


def _only_says(node: Node) -> bool:
    """Whether a statement starts no program: echo, printf and cat alone."""
    names = [text_of(child) for child in _commands(node)]
    return bool(names) and all(name in ("echo", "printf", "cat") for name in names)


def _commands(node: Node) -> list[Node]:
    if node.type == "command_name":
        return [node]
    return [name for child in node.children for name in _commands(child)]


def _error_line(node: Node) -> int:
    while True:
        inner = next((child for child in node.children if child.has_error), None)
        if inner is None or node.is_error or node.is_missing:
            return node.start_point.row + 1
        node = inner
