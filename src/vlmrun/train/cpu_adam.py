"""DeepSpeed's CPU Adam, compiled at its first use."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.cpp_extension import get_default_build_root

from vlmrun import locks

_VARIABLE = "TORCH_EXTENSIONS_DIR"


def compiled() -> None:
    """Compiles the extension, or waits for the process that does, and loads it."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    with built_alone(CPUAdamBuilder().name):
        CPUAdamBuilder().load(verbose=False)


@contextlib.contextmanager
def built_alone(name: str) -> Iterator[Path]:
    """Holds a folder in which torch compiles the extension `name`, which no other program uses; yields the folder.

    torch marks a folder in which it compiles by a file and waits until that is gone: for good, if its owner was killed.
    Here only one process at a time compiles, which the kernel knows, so a mark that is found is of a dead one.
    """
    before = os.environ.get(_VARIABLE)
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    root = Path(before or get_default_build_root()) / "vlmrun" / f"{python}_torch{torch.__version__}"
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    with locks.alone(root):
        (folder / "lock").unlink(missing_ok=True)
        os.environ[_VARIABLE] = str(root)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
