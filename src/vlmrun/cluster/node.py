"""Which of several nodes this is, and where the first one is to be reached: from variables, a host file, or SLURM."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmrun.cluster import hostfile
from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import LaunchError

DEFAULT_PORT = 29500
LOOPBACK = "127.0.0.1"
_WAYS = (
    "set NODE_RANK and MASTER_ADDR on every node (launchers/multinode.sh does), give hardware.hostfile, start one task "
    "per node with srun, or let vlmrun start the ranks itself inside one SLURM job: hardware.launcher=srun"
)


@dataclass(frozen=True)
class Node:
    """One of a run's nodes.

    Args:
        rank: its number; node 0 leads.
        master: name or address of node 0.
        port: where node 0's vlmrun listens for the others. Each job gets another one for its ranks.
        n_nodes: how many run vlmrun; srun's ranks do without one of their own.
    """

    rank: int
    master: str
    port: int
    n_nodes: int


ALONE = Node(0, LOOPBACK, 0, 1)


def here(hardware: HardwareConfig, env: Mapping[str, str]) -> Node:
    """This node.

    Raises:
        LaunchError: when there are several and nothing says which one this is, or what is said cannot be.
    """
    if hardware.nodes == 1 or hardware.launcher == "srun":
        _require_one_copy(env)
    if hardware.nodes == 1:
        return ALONE
    if hardware.launcher == "srun":
        return Node(0, socket.gethostname(), 0, 1)
    found = _from_variables(env) or _from_hostfile(hardware, env) or _from_slurm(env)
    if found is None:
        raise LaunchError(f"hardware.nodes is {hardware.nodes}, but nothing says which of them this is", "", _WAYS)
    rank, master, port = found
    if not 0 <= rank < hardware.nodes:
        raise LaunchError(
            f"this is node {rank}, but hardware.nodes is {hardware.nodes}",
            "NODE_RANK, or SLURM's number of this node",
            f"numbers from 0 to {hardware.nodes - 1}, or another hardware.nodes",
        )
    return Node(rank, master, port, hardware.nodes)


def _require_one_copy(env: Mapping[str, str]) -> None:
    """A launcher that starts every rank by itself has started as many of us, each of which would start all ranks.

    Raises:
        LaunchError: when this is one of several copies.
    """
    ours = env.get("LOCAL_WORLD_SIZE") or (env.get("WORLD_SIZE") if "LOCAL_RANK" in env else None)
    copies = {
        "torchrun or deepspeed": (ours, "LOCAL_RANK"),
        "srun": (env.get("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_ID" in env else None, "SLURM_PROCID"),
        "mpirun": (env.get("OMPI_COMM_WORLD_SIZE") or env.get("PMI_SIZE"), "OMPI_COMM_WORLD_RANK"),
    }
    for launcher, (started, number) in copies.items():
        if started is not None and started.isdecimal() and int(started) > 1:
            raise LaunchError(
                f"this is copy {env.get(number, '?')} of {started} that {launcher} has started, and each would start "
                "all ranks",
                f"{number} in the environment",
                f"run vlmrun once, without {launcher}: it starts hardware.ranks_per_node ranks itself "
                "(hardware.launcher=torchrun, deepspeed or srun)",
            )


def _from_variables(env: Mapping[str, str]) -> tuple[int, str, int] | None:
    if "NODE_RANK" not in env and "MASTER_ADDR" not in env:
        return None
    for name in ("NODE_RANK", "MASTER_ADDR"):
        if not env.get(name):
            other = "MASTER_ADDR" if name == "NODE_RANK" else "NODE_RANK"
            raise LaunchError(f"{other} is set, but {name} is not", "environment", _WAYS)
    return _number(env, "NODE_RANK"), env["MASTER_ADDR"], _port(env, DEFAULT_PORT)


def _from_hostfile(hardware: HardwareConfig, env: Mapping[str, str]) -> tuple[int, str, int] | None:
    if hardware.hostfile is None:
        return None
    hosts, problems = hostfile.read(hardware.hostfile)
    if problems:
        raise LaunchError(problems)
    mine = {socket.gethostname(), socket.gethostname().split(".")[0], socket.getfqdn()}
    for rank, host in enumerate(hosts):
        if host.name in mine or host.name.split(".")[0] in mine:
            return rank, hosts[0].name, _port(env, DEFAULT_PORT)
    raise LaunchError(
        f"{hardware.hostfile} does not name this computer, {socket.gethostname()}",
        "hardware.hostfile",
        "names as `hostname` prints them, or set NODE_RANK and MASTER_ADDR (`vlmrun nodes` prints the commands)",
    )


def _from_slurm(env: Mapping[str, str]) -> tuple[int, str, int] | None:
    """One task of `srun`. The batch script itself is no step: it would wait for the other nodes for good."""
    if "SLURM_JOB_ID" not in env:
        return None
    if "SLURM_STEP_NODELIST" not in env or "SLURM_PROCID" not in env:
        raise LaunchError(
            "this is the batch script of a SLURM job, which runs on its first node only",
            f"SLURM job {env['SLURM_JOB_ID']}",
            "hardware.launcher=srun, or start it with: srun --ntasks-per-node=1 vlmrun ...",
        )
    if env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0] != "1":
        raise LaunchError(
            "srun has started more than one vlmrun on each node",
            "SLURM_STEP_TASKS_PER_NODE",
            "srun --ntasks-per-node=1: vlmrun starts the ranks",
        )
    job = re.sub(r"\D", "", env["SLURM_JOB_ID"]) or "0"
    port = 20000 + int(job) % 10000  # two jobs of one node must not meet
    return _number(env, "SLURM_NODEID"), first_host(env["SLURM_STEP_NODELIST"]), _port(env, port)


def first_host(listed: str) -> str:
    """The first host of SLURM's short form: `n[003-007,9],x1` -> `n003`."""
    found = re.match(r"([^,\[]*)(?:\[([^\]]+)\]([^,]*))?", listed.strip())
    assert found is not None
    first = re.split(r"[,-]", found[2])[0] if found[2] else ""
    return found[1] + first + (found[3] or "")


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "")
    if not text.isdecimal():
        raise LaunchError(
            f"{name}={text!r} is not a whole number", "environment", "0 on the first node, 1 on the second ..."
        )
    return int(text)


def _port(env: Mapping[str, str], default: int) -> int:
    if "MASTER_PORT" not in env:
        return default
    port = _number(env, "MASTER_PORT")
    if not 1 <= port <= 65535:
        raise LaunchError(
            f"MASTER_PORT={port} is no port", "environment", f"1 to 65535; {DEFAULT_PORT} when it is not set"
        )
    return port


def commands(hardware: HardwareConfig, overrides: list[str]) -> list[str]:
    """Lines of shell that start every node of a host file over ssh, in this folder, and wait for them.

    The first one that fails gives the exit code; the others notice by themselves.
    """
    assert hardware.hostfile is not None
    hosts, problems = hostfile.read(hardware.hostfile)
    if problems:
        raise LaunchError(problems)
    vlmrun = shlex.join([sys.executable, "-m", "vlmrun.cli", *overrides])
    lines = ["set -u", "pids=''"]
    for rank, host in enumerate(hosts):
        where = f"NODE_RANK={rank} MASTER_ADDR={hosts[0].name} MASTER_PORT={_port(os.environ, DEFAULT_PORT)}"
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {where} {vlmrun}"
        lines.append(f'ssh {host.name} {shlex.quote(remote)} & pids="$pids $!"')
    lines.append("code=0; for pid in $pids; do wait $pid || code=$?; done; exit $code")
    return lines
