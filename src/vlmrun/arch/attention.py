"""What the attention kernels that come as packages can do, as far as it is known before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import Problem
from vlmrun.hardware.gpus import Gpu

WHERE = "hardware.attention"
_INSTEAD = "hardware.attention=sdpa"
INSTALL = "pip install 'vlmrun-trainer[gpu]'"


@dataclass(frozen=True)
class Kernel:
    """A package that computes attention.

    Args:
        module: what is imported; its distribution is `package`.
        since: the first GPU capability it runs on.
        head_multiples: by precision, what a head size must be a multiple of; it computes in no other precision.
        widest_head: the largest head size.
    """

    package: str
    module: str
    since: tuple[int, int]
    head_multiples: dict[str, int]
    widest_head: int


KERNELS = {
    # Source: Dao-AILab/flash-attention@v2.8.3:README.md and flash_attn/flash_attn_interface.py (other sizes are padded)
    "flash_attention_2": Kernel("flash-attn", "flash_attn", (8, 0), {"fp16": 1, "bf16": 1}, 256),
    # Source: facebookresearch/xformers@v0.0.35:xformers/ops/fmha/cutlass.py (alignment of 128 bits)
    "xformers": Kernel("xformers", "xformers", (6, 0), {"fp16": 8, "bf16": 8, "fp32": 4}, 65536),
}


def check(hardware: HardwareConfig, gpu: Gpu) -> Iterator[Problem]:
    """Whether the kernel asked for is here and runs on this GPU in this precision."""
    kernel = KERNELS.get(hardware.attention)
    if kernel is None:
        return
    if gpu.capability is None:
        yield Problem(f"{kernel.package} needs a GPU", WHERE, _INSTEAD)
    elif gpu.capability < kernel.since:
        has, needs = (".".join(map(str, numbers)) for numbers in (gpu.capability, kernel.since))
        other = " or xformers" if gpu.capability >= KERNELS["xformers"].since else ""
        yield Problem(
            f"{kernel.package} needs a GPU of compute capability {needs}, {gpu.name} has {has}", WHERE, _INSTEAD + other
        )
    if hardware.precision not in kernel.head_multiples:
        options = " or ".join(kernel.head_multiples)
        yield Problem(
            f"{kernel.package} does not compute in {hardware.precision}",
            WHERE,
            f"{_INSTEAD}, or hardware.precision={options}",
        )
    if find_spec(kernel.module) is None:
        yield Problem(f"{kernel.package} is not installed", WHERE, f"{INSTALL}, or {_INSTEAD}")


def check_head(hardware: HardwareConfig, head_dim: int, part: str) -> Iterator[Problem]:
    """Whether the kernel computes heads of this size."""
    kernel = KERNELS.get(hardware.attention)
    multiple = 1 if kernel is None else kernel.head_multiples.get(hardware.precision, 1)
    if kernel is None or (head_dim % multiple == 0 and head_dim <= kernel.widest_head):
        return
    fits = f"multiples of {multiple} up to {kernel.widest_head}" if multiple > 1 else f"up to {kernel.widest_head}"
    yield Problem(f"{kernel.package} computes heads of {fits}, the {part} has heads of {head_dim}", WHERE, _INSTEAD)
