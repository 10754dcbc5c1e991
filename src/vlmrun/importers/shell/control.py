"""Lists, tests, branches and loops."""

from __future__ import annotations

import re

from tree_sitter import Node

from vlmrun.importers.shell import marks
from vlmrun.importers.shell.builtins import Status
from vlmrun.importers.shell.conditions import Condition
from vlmrun.importers.shell.evaluator import Evaluator, Flow
from vlmrun.importers.shell.source import text_of

_TAKES = {"word", "string", "raw_string", "ansi_c_string", "translated_string", "concatenation", "number", "regex",
          "simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion",
          "brace_expression", "extglob_pattern", "variable_name", "test_operator", "special_variable_name"}  # fmt: skip


class Control(Evaluator):
    """Statements that decide which others run."""

    def _do_program(self, node: Node) -> Status:
        return self._body(node.children)

    _do_do_group = _do_program

    def _do_compound_statement(self, node: Node) -> Status:
        if node.children[0].type == "((":
            return self._truth(text_of(node)[2:-2])
        return self._body(node.children)

    def _do_subshell(self, node: Node) -> Status:
        kept, self.scope = self.scope, self.scope.copy()
        try:
            return self._body(node.children)
        except Flow as flow:
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
            if sign == "||":
                return self._guarded(right)
        if status if sign == "&&" else not status:
            return self._statement(right)
        return status

    def _guarded(self, *nodes: Node) -> Status:
        """Statements behind a test that is not known; None where they would end the script, so that it held."""
        line = self._line
        try:
            return self._body(nodes)
        except Flow as flow:
            if flow.word not in ("exit", "return"):
                raise
            self.reading.note(self.file, line, f"`{flow.word}` behind that test is passed over: a guard")
            return None

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

    def _do_if_statement(self, node: Node) -> Status:
        doubtful: list[Node] | None = None  # the first branch whose test is not known
        for branch in [node, *(child for child in node.children if child.type in ("elif_clause", "else_clause"))]:
            children = [child for child in branch.children if child.type not in ("elif_clause", "else_clause")]
            if branch.type == "else_clause":
                if doubtful is None:
                    return self._body(children)
                status = self._guarded(*children)
                return self._body(doubtful) if status is None else status
            then = next(place for place, child in enumerate(children) if child.type == "then")
            condition = [child for child in children[1:then] if child.is_named and child.type != "comment"]
            status = self._body(condition) if condition else False
            if status is None:
                self._assume(condition[0], "so the branch is passed over")
                doubtful = children[then + 1 :] if doubtful is None else doubtful
            elif status:
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
        except Flow as flow:
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


def _leaves(node: Node) -> list[str]:
    """The words of a test, operators and brackets among them."""
    if node.type in _TAKES or not node.children:
        return [text_of(node)]
    return [leaf for child in node.children for leaf in _leaves(child)]
