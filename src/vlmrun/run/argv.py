"""From a job to the argv and environment of its ranks: pure functions."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping

from vlmrun import kinds
from vlmrun.cluster.node import ALONE, Node
from vlmrun.config import derived
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import services

# Launchers set these. What we were given ourselves is about nodes, and a process that is no rank must not see it.
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def command(job: StageJob, port: int, visible: str = "", attempt: int = 0, node: Node = ALONE) -> list[str]:
    """The argv of a job on one node. Training and evaluation have several ranks; every other kind is one process.

    Args:
        port: a free one of node 0, for its ranks to meet at.
        visible: our CUDA_VISIBLE_DEVICES, which DeepSpeed would otherwise overwrite.
        attempt: how often the job was started before; ranks of two attempts never meet.
        node: which one of several this is.
    """
    worker = ["-m", "vlmrun.worker", str(job.path / JOB_FILE)]
    launcher = job.hardware.launcher
    if not kinds.of(job.stage).shares or launcher == "inline":
        return [sys.executable, *worker]
    if launcher == "torchrun":
        return [sys.executable, "-m", "vlmrun.torchrun", *_torchrun(job, port, attempt, node), *worker]
    if launcher == "srun":
        return ["srun", *_srun(job), sys.executable, "-m", "vlmrun.srun", worker[-1]]
    # Not deepspeed.launcher.runner: it dies on a signal without ending the launcher it started, and the ranks train on.
    return [
        *(sys.executable, "-m", "deepspeed.launcher.launch"),
        *("--world_info", _world(job, visible), "--node_rank", str(node.rank)),
        *("--master_addr", node.master, "--master_port", str(port)),
        *("--log_level", "critical", "--no_local_rank", "--module", *worker[1:]),
    ]


def environment(job: StageJob, base: Mapping[str, str], port: int = 0, node: Node = ALONE) -> dict[str, str]:
    """The ranks' environment: ours and the configuration's, with threads, the accelerator and quiet, offline libraries.

    Args:
        port, node: as in `command`; only srun's ranks get them here.
    """
    env = dict(base)
    for name in OF_RANKS:
        env.pop(name, None)
    env |= {name: str(value) for name, value in job.hardware.env.items()}
    env["OMP_NUM_THREADS"] = str(job.hardware.threads)
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # restarted gloo ranks would read stale addresses
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if job.hardware.nodes == 1:  # nothing outside is to reach the ports of its ranks
        env |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if job.hardware.gpu == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
        env["CUDA_VISIBLE_DEVICES"] = ""
    wandb = services(job.tracking).get("wandb")
    if wandb is None or wandb.mode == "offline":
        env["WANDB_MODE"] = "offline"
    if job.hardware.launcher == "srun":
        env |= {"MASTER_ADDR": node.master, "MASTER_PORT": str(port)}
    return env


def _torchrun(job: StageJob, port: int, attempt: int, node: Node) -> list[str]:
    hardware = job.hardware
    if hardware.nodes == 1:
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    else:
        # Static: ranks are numbered as the nodes are, so rank 0 is where the locks and the artifact are.
        meet = ["--node-rank", str(node.rank), "--rdzv-backend", "static", "--rdzv-endpoint", f"{node.master}:{port}"]
    return [
        *("--nnodes", str(hardware.nodes), "--nproc-per-node", str(hardware.ranks_per_node), *meet),
        *("--rdzv-id", f"{job.key}-{attempt}", "--max-restarts", "0"),
    ]


def _srun(job: StageJob) -> list[str]:
    """One task per rank; the first that fails ends all."""
    hardware = job.hardware
    return [
        *("--nodes", str(hardware.nodes), "--ntasks", str(derived.ranks(hardware))),
        *("--ntasks-per-node", str(hardware.ranks_per_node), "--cpus-per-task", str(hardware.threads)),
        *("--kill-on-bad-exit=1", f"--job-name=vlmrun-{job.name}"),
    ]


def _world(job: StageJob, visible: str) -> str:
    """DeepSpeed's list of hosts and their devices: the first ones of those we were given, else of all."""
    n_ranks = job.hardware.ranks_per_node
    given = visible.split(",") if visible and job.hardware.gpu != "cpu" else range(n_ranks)
    hosts = ["localhost"] if job.hardware.nodes == 1 else [f"node{rank}" for rank in range(job.hardware.nodes)]
    world = {host: list(given[:n_ranks]) for host in hosts}
    return base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
