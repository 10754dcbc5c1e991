"""Where an artifact came from: its parents, and theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vlmrun import artifact
from vlmrun.artifact import Parent
from vlmrun.errors import CheckpointError
from vlmrun.report import tables

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True)
class Node:
    """An artifact in a lineage.

    Args:
        note: why nothing is known beyond it (it is gone, or damaged), or empty.
        parents: what it was made from.
    """

    name: str
    key: str
    kind: str
    path: Path
    note: str
    parents: tuple[Node, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, nested."""
        return {
            **{"name": self.name, "key": self.key, "kind": self.kind, "path": str(self.path), "note": self.note},
            "parents": [parent.to_dict() for parent in self.parents],
        }

    @property
    def line(self) -> str:
        """The node in one line."""
        return "  ".join(filter(None, (self.name, self.key, self.kind, tables.shown(self.path), self.note)))


def trace(folder: Path) -> Node:
    """The lineage of a finished artifact.

    Raises:
        CheckpointError: when the artifact itself cannot be read; an ancestor that cannot is noted.
    """
    made = artifact.read(folder)
    if made is None:
        raise CheckpointError(f"{folder.name!r} is not a finished artifact", str(folder), f"it has no {artifact.NAME}")
    parents = tuple(_ancestor(parent, folder.parent) for parent in made.parents)
    return Node(made.name, made.key, made.kind, folder.resolve(), "", parents)


def write(node: Node, stream: IO[str]) -> None:
    """Draws a tree on a terminal, and indents lines elsewhere. An ancestor met again is not unfolded again."""
    if tables.is_terminal(stream):
        from rich.console import Console
        from rich.text import Text
        from rich.tree import Tree

        tree = Tree(Text(node.line, style="bold"), guide_style="dim")
        _grow(tree, node, {node.path})
        # Wider than any terminal: rich would cut long paths off, a terminal wraps them.
        Console(file=stream, highlight=False, width=10_000).print(tree)
    else:
        for depth, item, again in _walk(node, 1, set()):
            stream.write(f"{'  ' * depth}{item.line}{'  (as above)' if again else ''}\n")


def _ancestor(parent: Parent, beside: Path) -> Node:
    """Looked for where it was, and then beside its child, as when a whole output root was moved."""
    places = (Path(parent.path), beside / f"{parent.name}-{parent.key}")
    note = "(gone)"
    for folder in places:
        try:
            made = artifact.read(folder)
        except CheckpointError:
            note = "(damaged)"
            continue
        if made is None:
            continue
        if made.key == parent.key:
            return trace(folder)
        note = f"(another artifact is there now: {made.key})"
    return Node(parent.name, parent.key, "", Path(parent.path), note, ())


def _walk(node: Node, depth: int, met: set[Path]) -> Iterator[tuple[int, Node, bool]]:
    again = bool(node.parents) and node.path in met
    yield depth, node, again
    met.add(node.path)
    for parent in () if again else node.parents:
        yield from _walk(parent, depth + 1, met)


def _grow(tree: Tree, node: Node, met: set[Path]) -> None:
    from rich.text import Text

    for parent in node.parents:
        again = bool(parent.parents) and parent.path in met
        branch = tree.add(Text(parent.line + ("  (as above)" if again else "")))
        met.add(parent.path)
        if not again:
            _grow(branch, parent, met)
