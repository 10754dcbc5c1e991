"""What machines can do: a table of the makers' figures (dense, without sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.errors import ConfigError, suggest


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator; `cpu` is one of them.

    `capability` is NVIDIA's number of what the chip can do; None for the CPU.

    Units:
        peak_flops_bf16, peak_flops_fp16, peak_flops_fp32: floating point operations per second; 0 = not supported.
        bandwidth_bytes: bytes per second between the chip and its memory.

    `memory_bytes` is None for the CPU, whose memory is the machine's.
    """

    name: str
    memory_bytes: int | None
    bf16: bool
    peak_flops_bf16: float
    peak_flops_fp16: float
    peak_flops_fp32: float
    bandwidth_bytes: float
    capability: tuple[int, int] | None

    @property
    def is_cpu(self) -> bool:
        """Whether this is the machine's processor."""
        return self.name == "cpu"

    @property
    def tf32(self) -> bool:
        """Whether it has TensorFloat-32 (Ampere and later)."""
        return self.capability is not None and self.capability >= (8, 0)

    def peak_flops(self, precision: str, *, tf32: bool) -> float:
        """Operations per second at a precision; of fp32 products in TensorFloat-32, half of those in bf16."""
        if precision == "fp32" and tf32 and self.tf32:
            return self.peak_flops_bf16 / 2  # so in the data sheets of A100 (156), RTX 3090 (35.6) and H100 (494)
        peak: float = getattr(self, f"peak_flops_{precision}")
        return peak


_GIB = 1024**3

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # The CPU's figures are one AVX-512 core's order of magnitude; a plan made with them is marked as rough.
        Gpu("cpu", None, True, 5e10, 0.0, 5e10, 2e10, None),
        Gpu("v100_16g", 16 * _GIB, False, 0.0, 125e12, 15.7e12, 900e9, (7, 0)),
        Gpu("v100_32g", 32 * _GIB, False, 0.0, 125e12, 15.7e12, 900e9, (7, 0)),
        Gpu("a100_40g", 40 * _GIB, True, 312e12, 312e12, 19.5e12, 1555e9, (8, 0)),
        Gpu("a100_80g", 80 * _GIB, True, 312e12, 312e12, 19.5e12, 2039e9, (8, 0)),
        Gpu("rtx3090", 24 * _GIB, True, 71e12, 71e12, 35.6e12, 936e9, (8, 6)),
        Gpu("h100_80g", 80 * _GIB, True, 989e12, 989e12, 67e12, 3350e9, (9, 0)),
        Gpu("h200_141g", 141 * _GIB, True, 989e12, 989e12, 67e12, 4800e9, (9, 0)),
    )
}


def find(name: str) -> Gpu:
    """The entry of that name.

    Raises:
        ConfigError: with the nearest name, when there is none.
    """
    if name not in GPUS:
        raise ConfigError(f"unknown gpu {name!r}", "hardware.gpu", suggest(name, GPUS, noun="gpus"))
    return GPUS[name]
