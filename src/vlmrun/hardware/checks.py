"""Rules about what a machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import Problem, suggest
from vlmrun.hardware.gpus import GPUS


def check(hardware: HardwareConfig) -> Iterator[Problem]:
    """Precision, attention and number of nodes against the GPU named."""
    gpu = GPUS.get(hardware.gpu)
    if gpu is None:
        yield Problem(f"unknown gpu {hardware.gpu!r}", "hardware.gpu", suggest(hardware.gpu, GPUS, noun="gpus"))
        return
    if hardware.precision == "bf16" and not gpu.bf16:
        yield Problem(f"{gpu.name} has no bf16", "hardware.precision", "hardware.precision=fp32")
    if hardware.precision == "fp16" and gpu.is_cpu:
        yield Problem(
            "fp16 training needs a GPU: DeepSpeed refuses it on a CPU", "hardware.precision", "hardware.precision=fp32"
        )
    if hardware.nodes > 1:
        yield Problem("runs on several nodes are not built yet", "hardware.nodes", "hardware.nodes=1")
    if hardware.attention == "flash_attention_2":
        yield from _flash_attention(hardware, gpu.is_cpu)


def quantisation(where: str) -> Iterator[Problem]:
    """4-bit weights need bitsandbytes, on a GPU and on a CPU; it is looked for, not imported (that takes seconds)."""
    if find_spec("bitsandbytes") is None:
        yield Problem(
            "4-bit weights need bitsandbytes, which is not installed", where, "pip install 'bitsandbytes>=0.50'"
        )


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


def _flash_attention(hardware: HardwareConfig, is_cpu: bool) -> Iterator[Problem]:
    if is_cpu:
        yield Problem("flash attention needs a GPU", "hardware.attention", "hardware.attention=sdpa")
    elif hardware.precision == "fp32":
        yield Problem("flash attention has no fp32", "hardware.attention", "hardware.precision=bf16, or attention=sdpa")
    elif find_spec("flash_attn") is None:
        yield Problem(
            "flash-attn is not installed",
            "hardware.attention",
            "pip install 'vlmrun-trainer[gpu]', or hardware.attention=sdpa",
        )
