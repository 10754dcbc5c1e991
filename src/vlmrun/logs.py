"""One logging set-up. stdout carries results one may pipe; everything else goes to stderr through here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def get(name: str) -> logging.Logger:
    """The logger of a module: `log = logs.get(__name__)`."""
    return logging.getLogger(name)


def setup(*, rank: int = 0, folder: Path | None = None, level: int = logging.INFO) -> None:
    """Rank 0 speaks on stderr; every rank writes `folder/rank-N.log` when a folder is given."""
    root = logging.getLogger("vlmrun")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    root.propagate = False
    if rank == 0:
        speak = logging.StreamHandler(sys.stderr)
        speak.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(speak)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
        keep.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(keep)


def is_terminal() -> bool:
    """Whether stderr is a terminal that wants bars and color (`NO_COLOR` and `CI` say no)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")
