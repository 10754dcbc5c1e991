"""Ranks: joining the process group, leaving it in order, and the few collectives the trainer needs.

Evidence for each precaution stands in the design's platform notes: no compiler at start-up, an explicit time-out,
barrier + destroy at exit, and workers that die with their launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from vlmrun.config import derived
from vlmrun.config.job import RENDEZVOUS
from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import LaunchError
from vlmrun.hardware import gpus


@dataclass
class _Layout:
    """How the ranks of a session are grouped."""

    replicas: int = 1
    tensor: int = 1


_layout = _Layout()
_PR_SET_PDEATHSIG = 1
# What gloo, NCCL and the store say when another rank is gone or stuck.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "timed out",
    "Connection refused",
    "Broken pipe",
    "got 0 bytes",
)


def rank() -> int:
    """This process's number among all ranks."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world() -> int:
    """Number of ranks."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def replicas() -> int:
    """Ranks that read the same samples: neighbors that share a sequence, or the layers of the LLM."""
    return _layout.replicas


def data_rank() -> int:
    """The number of this rank's group of replicas: ranks with one number read the same samples."""
    return rank() // replicas()


def data_world() -> int:
    """How many groups of replicas there are."""
    return world() // replicas()


def noise_rank() -> int:
    """Whose random numbers this rank draws: ranks that compute the same numbers must drop out the same ones."""
    return rank() // _layout.tensor


def replica_group() -> Any:
    """The process group of this rank's replicas; all ranks call it."""
    starts = range(0, world(), replicas())
    groups = [torch.distributed.new_group(list(range(start, start + replicas()))) for start in starts]
    return groups[data_rank()]


def is_main() -> bool:
    """Whether this rank speaks and writes."""
    return rank() == 0


def device(hardware: HardwareConfig) -> torch.device:
    """Where this rank computes.

    Raises:
        LaunchError: when that is a GPU, and none is here.
    """
    if gpus.find(hardware.gpu).is_cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LaunchError(
            "no GPU is visible here", f"hardware.gpu={hardware.gpu}", "use hardware=cpu, or check the driver"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def session(hardware: HardwareConfig) -> Iterator[None]:
    """The process group for the length of a job.

    A group that exists already is used and left alone. Without a launcher's environment this is one rank of one.

    Raises:
        LaunchError: when the number of ranks is not the configured one, or another rank died or hung.
    """
    prepare(hardware)
    _layout.replicas, _layout.tensor = derived.replicas(hardware), hardware.tensor_parallel
    ours = not torch.distributed.is_initialized()
    if ours:
        _join(hardware)
    try:
        _check_world(hardware)
        yield
        barrier()
    except RuntimeError as error:
        if lost_a_rank(error):
            raise LaunchError(
                f"rank {rank()} lost another rank: {str(error).splitlines()[0]}",
                f"{world()} ranks",
                "its last words are in logs/rank-*.log; if it was only slow, raise hardware.timeout_seconds; "
                "the same command resumes from the newest checkpoint",
                reason="lost_rank",
            ) from error
        raise
    finally:
        # Leaving without destroying the group aborts now and then at exit, after a good run.
        if ours:
            torch.distributed.destroy_process_group()


def prepare(hardware: HardwareConfig) -> None:
    """What must be set before torch computes or DeepSpeed is imported. Safe to call twice."""
    torch.set_num_threads(hardware.threads)
    # Off as well: torch leaves it on for convolutions, which a tower begins with.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = hardware.tf32
    _die_with_parent()
    if gpus.find(hardware.gpu).is_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed insists on this name even for one rank.
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed decorates an optimizer we do not use with torch.compile, whose import alone costs 1.5 s.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # torch and DeepSpeed warn of their own internals at every step; none of it is for the user.
    for module in ("torch", "deepspeed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{module}\.")


def lost_a_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone or stuck."""
    return world() > 1 and any(sign in str(error) for sign in _LOST)


def on_device(values: torch.Tensor) -> torch.Tensor:
    """Moves a tensor to where this group's collectives work."""
    gpu = torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"
    return values.cuda() if gpu else values


def all_reduce(values: torch.Tensor, *, maximum: bool = False) -> torch.Tensor:
    """Sum (or maximum) over ranks, in place."""
    if world() > 1:
        operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(values, op=operation)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def broadcast_object(value: Any) -> Any:
    """Rank 0's value."""
    if world() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Waits for every rank."""
    if world() > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block before the others enter it."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def _join(hardware: HardwareConfig) -> None:
    timeout = datetime.timedelta(seconds=hardware.timeout_seconds)
    place = device(hardware)
    backend = "gloo" if place.type == "cpu" else "nccl"
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if "RANK" in os.environ and RENDEZVOUS in os.environ:
        if backend == "gloo" and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # A file, not torch's TCP store: that listens on every interface, and all ranks are here.
        store = torch.distributed.FileStore(str(Path(os.environ[RENDEZVOUS]) / "ranks"), ranks)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
        return
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    # One process needs no rendezvous, and no port that another job could hold.
    alone = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)


def _check_world(hardware: HardwareConfig) -> None:
    # A rank that believes it is alone trains on all the data, and no one notices.
    if world() != derived.ranks(hardware):
        raise LaunchError(
            f"{world()} ranks were started, {derived.ranks(hardware)} are configured",
            "hardware.nodes x hardware.ranks_per_node",
            "start through vlmrun, or start as many ranks as configured; launcher=inline has one",
        )


def _die_with_parent() -> None:
    """A launcher killed with SIGKILL would leave its workers running as orphans."""
    if sys.platform == "linux" and "RANK" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
