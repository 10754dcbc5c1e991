"""Optional packages that a part needs: looked for, not imported, which would take seconds."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import Problem
from vlmrun.hardware.gpus import GPUS


def bitsandbytes(where: str) -> Iterator[Problem]:
    """Weights in 4 bits, and optimizers of its own; it is looked for, not imported (that takes seconds)."""
    if find_spec("bitsandbytes") is None:
        what = "this optimizer needs" if where.endswith("optimizer") else "4-bit weights need"
        yield Problem(f"{what} bitsandbytes, which is not installed", where, "pip install 'bitsandbytes>=0.50'")


def liger(hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    """Liger's kernels run on GPUs alone; the package is looked for, not imported."""
    gpu = GPUS.get(hardware.gpu)
    if gpu is not None and gpu.is_cpu:
        yield Problem("liger needs a GPU", where, f"{where}=chunked")
    elif hardware.precision == "fp16":
        yield Problem(
            "liger computes gradients before the loss is scaled, and fp16 loses the small ones",
            where,
            f"{where}=chunked",
        )
    elif find_spec("liger_kernel") is None:
        yield Problem("liger-kernel is not installed", where, f"pip install 'vlmrun-trainer[gpu]', or {where}=chunked")


def timm(where: str) -> Iterator[Problem]:
    """Towers of timm need it installed; it is looked for, not imported."""
    if find_spec("timm") is None:
        yield Problem("this tower needs timm, which is not installed", where, "pip install 'vlmrun-trainer[towers]'")
