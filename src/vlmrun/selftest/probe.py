"""What this machine has, asked of nvidia-smi and of torch in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

from vlmrun.hardware.gpus import GPUS

_SECONDS = 120
_ASK_TORCH = """
import json, warnings
warnings.simplefilter("ignore")
import torch
found = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "n": torch.cuda.device_count() if found else 0,
    "name": torch.cuda.get_device_name(0) if found else "",
    "capability": list(torch.cuda.get_device_capability(0)) if found else [0, 0],
    "memory": torch.cuda.get_device_properties(0).total_memory if found else 0,
}))
"""


@dataclass(frozen=True)
class Machine:
    """GPUs and versions.

    Attributes:
        n_gpus: that torch can use.
        trouble: why it can use none, in one line.
        memory: bytes of the first.
    """

    torch: str
    cuda: str | None
    n_gpus: int
    gpu: str
    capability: tuple[int, int]
    memory: int
    trouble: str = ""

    @property
    def table_name(self) -> str:
        """The most capable entry of `hardware.gpu` that this GPU is at least: what `check` then takes for granted."""
        if not self.n_gpus:
            return "cpu"
        known = [gpu for gpu in GPUS.values() if gpu.capability is not None and gpu.capability <= self.capability]
        fitting = [gpu for gpu in known if gpu.memory_bytes is not None and gpu.memory_bytes <= self.memory * 1.1]
        best = max(fitting or known, key=lambda gpu: (gpu.capability, gpu.memory_bytes), default=None)
        return "v100_16g" if best is None else best.name


def look() -> Machine:
    """Starts torch once and asks it."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        return Machine("", None, 0, "", (0, 0), 0, f"torch cannot be imported: {last}")
    told = json.loads(done.stdout.splitlines()[-1])
    trouble = "" if told["n"] else _why_none(told["cuda"])
    major, minor = told["capability"]
    return Machine(told["torch"], told["cuda"], told["n"], told["name"], (major, minor), told["memory"], trouble)


def _why_none(cuda: str | None) -> str:
    seen = _nvidia_smi()
    if seen is None:
        return "no NVIDIA GPU, or no driver: nvidia-smi is not here"
    if not seen:
        return "nvidia-smi finds no GPU"
    if cuda is None:
        return f"torch is a build for CPUs, and here is {seen}: pip install torch --index-url of your CUDA version"
    return f"torch was built for CUDA {cuda} and cannot use {seen}: the driver is too old, or the GPU is hidden"


def _nvidia_smi() -> str | None:
    """Name and driver of the GPUs; None without the program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    return "; ".join(sorted({f"{name.strip()} with driver {driver.strip()}" for name, driver in
                             (line.rsplit(",", 1) for line in lines)}))  # fmt: skip
