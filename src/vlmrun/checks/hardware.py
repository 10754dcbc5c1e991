"""Rules about what a machine can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from shutil import which

from vlmrun.arch import attention
from vlmrun.checks import environment
from vlmrun.checks.table import Rule
from vlmrun.cluster import hostfile
from vlmrun.config.schema import RunConfig
from vlmrun.errors import Problem, suggest
from vlmrun.hardware.gpus import GPUS


def _gpu(run: RunConfig) -> Iterator[Problem]:
    if run.hardware.gpu not in GPUS:
        fix = suggest(run.hardware.gpu, GPUS, noun="gpus")
        yield Problem(f"unknown gpu {run.hardware.gpu!r}", "hardware.gpu", fix)


def _attention(run: RunConfig) -> Iterator[Problem]:
    if run.hardware.gpu in GPUS:
        yield from attention.check(run.hardware, GPUS[run.hardware.gpu])


def _environment(run: RunConfig) -> Iterator[Problem]:
    yield from environment.check(run.hardware.env)
    yield from environment.interfaces(run.hardware)


def _shell(run: RunConfig) -> Iterator[Problem]:
    yield from environment.shell(run, os.environ)


def _precision(run: RunConfig) -> Iterator[Problem]:
    hardware, gpu = run.hardware, GPUS.get(run.hardware.gpu)
    if gpu is None:
        return
    where = "hardware.precision"
    if hardware.precision == "bf16" and not gpu.bf16:
        yield Problem(f"{gpu.name} has no bf16", where, "hardware.precision=fp16, or fp32")
    if hardware.precision == "fp16" and gpu.is_cpu:
        yield Problem("fp16 training needs a GPU: DeepSpeed refuses it on a CPU", where, "hardware.precision=fp32")
    if hardware.tf32 and not gpu.tf32:
        yield Problem(f"{gpu.name} has no TensorFloat-32", "hardware.tf32", "hardware.tf32=false")


def _srun(run: RunConfig) -> Iterator[Problem]:
    hardware = run.hardware
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


def _nodes(run: RunConfig) -> Iterator[Problem]:
    hardware = run.hardware
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


RULES = (
    Rule("gpu", "The GPU is one whose memory and abilities are known.", ("hardware.gpu",), _gpu, here=True),
    Rule("precision", "The GPU can compute in the precision that is asked for.",
         ("hardware.gpu", "hardware.precision", "hardware.tf32"), _precision, here=True),
    Rule("attention", "The attention kernel is installed and runs on the GPU in this precision.",
         ("hardware.attention", "hardware.gpu", "hardware.precision"), _attention, here=True),
    Rule("environment", "A configuration sets only variables that tune communication and devices.", ("hardware.env",),
         _environment, here=True),
    Rule("shell", "Variables of the shell that name trackers and GPUs agree with the configuration.",
         ("tracking", "hardware.gpu", "hardware.ranks_per_node"), _shell, here=True),
    Rule("srun", "The srun launcher is used inside SLURM, without a host file.",
         ("hardware.launcher", "hardware.hostfile"), _srun, here=True),
    Rule("host-file", "A host file names as many hosts as there are nodes, with room for their ranks.",
         ("hardware.hostfile", "hardware.nodes", "hardware.ranks_per_node"), _nodes, here=True),
)  # fmt: skip
