"""Variables: `X=1`, `A+=(b)`, `export`, `local`, `unset`."""

from __future__ import annotations

from tree_sitter import Node

from vlmrun.importers.shell import builtins
from vlmrun.importers.shell.builtins import Status
from vlmrun.importers.shell.control import Control
from vlmrun.importers.shell.source import text_of


class Assignments(Control):
    """Statements that set variables."""

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
