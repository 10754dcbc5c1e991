"""Rules about what a machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from shutil import which

from vlmrun.arch import attention
from vlmrun.checks import environment
from vlmrun.cluster import hostfile
from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import Problem, suggest
from vlmrun.hardware.gpus import GPUS, Gpu


def check(hardware: HardwareConfig) -> Iterator[Problem]:
    """Precision, attention, environment and nodes against each other and the GPU named."""
    gpu = GPUS.get(hardware.gpu)
    if gpu is None:
        yield Problem(f"unknown gpu {hardware.gpu!r}", "hardware.gpu", suggest(hardware.gpu, GPUS, noun="gpus"))
        return
    yield from _precision(hardware, gpu)
    yield from attention.check(hardware, gpu)
    yield from environment.check(hardware.env)
    yield from _srun(hardware)
    yield from _nodes(hardware)


def _precision(hardware: HardwareConfig, gpu: Gpu) -> Iterator[Problem]:
    where = "hardware.precision"
    if hardware.precision == "bf16" and not gpu.bf16:
        yield Problem(f"{gpu.name} has no bf16", where, "hardware.precision=fp16, or fp32")
    if hardware.precision == "fp16" and gpu.is_cpu:
        yield Problem("fp16 training needs a GPU: DeepSpeed refuses it on a CPU", where, "hardware.precision=fp32")
    if hardware.tf32 and not gpu.tf32:
        yield Problem(f"{gpu.name} has no TensorFloat-32", "hardware.tf32", "hardware.tf32=false")


def _srun(hardware: HardwareConfig) -> Iterator[Problem]:
    if hardware.launcher != "srun":
        return
    if which("srun") is None:
        yield Problem(
            "launcher srun starts ranks with srun, and there is no srun here",
            "hardware.launcher",
            "run it inside a SLURM job (launchers/slurm.sbatch), or hardware.launcher=torchrun",
        )
    if hardware.hostfile is not None:
        yield Problem("SLURM says which nodes srun starts ranks on", "hardware.hostfile", "hardware.hostfile=null")


def _nodes(hardware: HardwareConfig) -> Iterator[Problem]:
    """A host file must have as many hosts as there are nodes, with room for their ranks."""
    if hardware.hostfile is None:
        return
    hosts, problems = hostfile.read(hardware.hostfile)
    yield from problems
    if problems:
        return
    if len(hosts) != hardware.nodes:
        yield Problem(
            f"{hardware.hostfile} names {len(hosts)} hosts, hardware.nodes is {hardware.nodes}",
            "hardware.hostfile",
            f"hardware.nodes={len(hosts)}, or another file",
        )
    for host in hosts:
        if host.slots < hardware.ranks_per_node:
            yield Problem(
                f"{host.name} has {host.slots} slots, hardware.ranks_per_node is {hardware.ranks_per_node}",
                "hardware.hostfile",
                "as many slots as GPUs are used on each node",
            )
