"""From a script's path to what it would start. Only the script, and scripts below `root` that it calls, are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmrun.errors import ConfigError
from vlmrun.importers.shell.commands import Reading
from vlmrun.importers.shell.interpreter import Interpreter
from vlmrun.importers.shell.scope import Scope
from vlmrun.importers.shell.source import MAX_SIZE, as_meant, checked


def read_script(
    path: Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    root: Path | None = None,
    meant: bool = False,
) -> Reading:
    """What `bash path arguments` would start in that environment, working in `root`.

    Args:
        root: working folder, and the limit of what is opened; default: the script's own folder.
        meant: fix broken continuations first.

    Raises:
        ConfigError: when the file is no script, or too much to follow.
    """
    root = root or path.parent
    text = checked(_content(path), str(path))

    def load(place: str) -> str | None:
        file = (root / place).resolve()
        inside = file.is_relative_to(root.resolve()) or file.is_relative_to(path.parent.resolve())
        if not inside or not file.is_file() or file.stat().st_size > MAX_SIZE:
            return None
        called = checked(file.read_bytes(), str(file))
        return as_meant(called) if meant else called

    reading = Reading()
    scope = Scope(variables=dict(environment or {}), arguments=list(arguments), script=str(path))
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    reader = Interpreter(as_meant(text) if meant else text, name, scope, reading, load)
    try:
        reader.run()
    except RecursionError:
        raise ConfigError(
            f"{name} is nested too deeply", str(path), "import the part that starts the training"
        ) from None
    return reading


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(f"no script {str(path)!r}", "command line", "vlmrun import FILE.sh")
    if path.stat().st_size > MAX_SIZE:
        raise ConfigError(f"{path.stat().st_size:,} bytes are no launch script", str(path), "vlmrun import FILE.sh")
    return path.read_bytes()
