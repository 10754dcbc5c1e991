"""From a job to running ranks. What is run is a pure function of the job; only `run` starts a process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import FrameType

from vlmrun.config.job import FAILURE_FILE, JOB_FILE, StageJob
from vlmrun.errors import LaunchError, error_from_dict

_PR_SET_PDEATHSIG = 1


def command(job: StageJob, port: int) -> list[str]:
    """The argv of a job. Only training has several ranks; every other kind is one process."""
    job_file = str(job.path / JOB_FILE)
    hardware = job.hardware
    if job.stage.kind != "train" or hardware.launcher == "inline":
        return [sys.executable, "-m", "vlmrun.worker", job_file]
    if hardware.launcher == "torchrun":
        return [
            *(sys.executable, "-m", "vlmrun.torchrun"),
            *("--nnodes", "1", "--nproc-per-node", str(hardware.ranks_per_node)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", job.key),
            *("--max-restarts", "0", "-m", "vlmrun.worker", job_file),
        ]
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--num_accelerators", str(hardware.ranks_per_node), "--master_port", str(port)),
        *("--log_level", "warning", "--no_local_rank", "--module", "vlmrun.worker", job_file),
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


def run(job: StageJob, lock_fd: int) -> None:
    """Writes nothing itself: starts the ranks of `job.json`, forwards signals, and waits.

    Raises:
        VlmrunError: the worker's own error, or a LaunchError when it died without saying why.
        KeyboardInterrupt: when the person stopped it; the worker has saved by then.
    """
    failure = job.path / FAILURE_FILE
    failure.unlink(missing_ok=True)
    process = subprocess.Popen(
        command(job, _free_port()),
        env=environment(job, os.environ),
        start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on once
        preexec_fn=_die_with_parent,
        pass_fds=(lock_fd,),
        stdout=2,  # launchers chatter on stdout, which belongs to results one may pipe
    )
    code, stopped = _wait(process)
    error = error_from_dict(json.loads(failure.read_text("utf-8"))) if failure.is_file() else None
    if stopped:
        raise KeyboardInterrupt(str(error.problems[0].what) if error else "stopped before the first checkpoint")
    if error:
        raise error
    if code != 0:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise LaunchError(
            f"the worker of stage {job.name!r} {how} without saying why",
            str(job.path / "logs"),
            "the same command goes on from the newest checkpoint",
        )


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Exit code, and whether we were asked to stop. The first signal is passed on, a second one kills."""
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            if len(asked) == 1:
                process.send_signal(number)
            else:
                os.killpg(process.pid, signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait(), bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
