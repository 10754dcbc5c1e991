"""From a job to the argv and environment of its ranks: pure functions."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping

from vlmrun.config.job import JOB_FILE, StageJob


def command(job: StageJob, port: int, visible: str = "", attempt: int = 0) -> list[str]:
    """The argv of a job. Only training has several ranks; every other kind is one process.

    Args:
        port: a free one, for launchers that do not find one themselves.
        visible: our CUDA_VISIBLE_DEVICES, which DeepSpeed would otherwise overwrite.
        attempt: how often the job was started before; ranks of two attempts never meet.
    """
    job_file = str(job.path / JOB_FILE)
    hardware = job.hardware
    if job.stage.kind != "train" or hardware.launcher == "inline":
        return [sys.executable, "-m", "vlmrun.worker", job_file]
    if hardware.launcher == "torchrun":
        return [
            *(sys.executable, "-m", "vlmrun.torchrun"),
            *("--nnodes", "1", "--nproc-per-node", str(hardware.ranks_per_node)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", f"{job.key}-{attempt}"),
            *("--max-restarts", "0", "-m", "vlmrun.worker", job_file),
        ]
    # Not deepspeed.launcher.runner: it dies on a signal without ending the launcher it started, and the ranks train on.
    return [
        *(sys.executable, "-m", "deepspeed.launcher.launch"),
        *("--world_info", _world(job, visible), "--node_rank", "0"),
        *("--master_addr", "127.0.0.1", "--master_port", str(port)),
        *("--log_level", "critical", "--no_local_rank", "--module", "vlmrun.worker", job_file),
    ]


def environment(job: StageJob, base: Mapping[str, str]) -> dict[str, str]:
    """The workers' environment: ours, with threads, the accelerator and quiet, offline libraries set."""
    env = dict(base)
    env["OMP_NUM_THREADS"] = str(job.hardware.threads)
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # restarted gloo ranks would read stale addresses
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if job.hardware.gpu == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
        env["CUDA_VISIBLE_DEVICES"] = ""
    if "wandb_online" not in job.tracking:
        env["WANDB_MODE"] = "offline"
    return env


def _world(job: StageJob, visible: str) -> str:
    """DeepSpeed's list of hosts and their devices: the first ones of those we were given, else of all."""
    n_ranks = job.hardware.ranks_per_node
    given = visible.split(",") if visible and job.hardware.gpu != "cpu" else range(n_ranks)
    return base64.urlsafe_b64encode(json.dumps({"localhost": list(given[:n_ranks])}).encode()).decode()
