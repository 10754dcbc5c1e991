"""Which environment variables a configuration may set for the ranks: those that tune communication and devices.

A recipe may come from anywhere, and some variables make a process load a library or write a file of their choice. Those
are left to the person's own shell, which is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from vlmrun.errors import Problem

PREFIXES = ("NCCL_", "GLOO_", "TORCH_", "CUDA_", "OMP_")
# Names of these words load code or touch files: NCCL_NET_PLUGIN, CUDA_INJECTION64_PATH, TORCH_EXTENSIONS_DIR ...
_REACHES_OUT = re.compile(r"PLUGIN|INJECTION|LIB|PATH|DIR|FILE|HOME|TRACE|DUMP|SCRIPT")
_OURS = {
    "OMP_NUM_THREADS": "hardware.threads",
    "CUDA_VISIBLE_DEVICES": "your shell: it says which GPUs of this computer are yours",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "nothing: vlmrun sets it",
}
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def check(variables: Mapping[str, str | int]) -> Iterator[Problem]:
    """Every name or value that may not be set."""
    for name, value in variables.items():
        where = f"hardware.env.{name}"
        if name in _OURS:
            yield Problem(f"{name} is not set here", where, f"set {_OURS[name]}")
        elif not _NAME.fullmatch(name) or not name.startswith(PREFIXES):
            yield Problem(
                f"{name} may not be set by a configuration",
                where,
                f"names of {', '.join(PREFIXES)}; or set it in your shell",
            )
        elif _REACHES_OUT.search(name):
            yield Problem(f"{name} loads code or touches files", where, "set it in your shell, if you need it")
        elif not str(value).isprintable():
            yield Problem(f"{name} has a value that cannot be printed", where, "plain text in one line")
