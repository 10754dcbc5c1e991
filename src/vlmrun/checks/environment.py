"""Environment variables: which ones a configuration may set for the ranks, and those of the user's own shell.

A recipe may come from anywhere, and some variables make a process load a library, write a file of their choice or trust
what it reads. Those are left to the user's shell, which is passed on as it is, but for the few that vlmrun decides
itself: they are refused where they say something else, and reported where they have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from vlmrun.config.schema import HardwareConfig, RunConfig, services
from vlmrun.errors import Problem

PREFIXES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "TORCH_CPP_LOG_", "CUDA_", "OMP_")
# Words of names that load code or touch files: NCCL_NET_PLUGIN, CUDA_INJECTION64_PATH, TORCH_EXTENSIONS_DIR; no DIRECT
_REACHES_OUT = re.compile(
    r"PLUGIN|INJECTION|LIB|PATH|DIR(?!ECT_)|FILE|HOME|TRACE|DUMP|SCRIPT|PIPE|TOOL|TUNER|PROFILER|COREDUMP|CONF|ADDR|COMM_ID|NCCL_NET$"
)
_OURS = {
    "OMP_NUM_THREADS": "hardware.threads",
    "CUDA_VISIBLE_DEVICES": "your shell: it says which GPUs of this computer are yours",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "nothing: vlmrun sets it",
}
# Of several nodes; the ranks of one node meet on its loopback interface.
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def check(variables: Mapping[str, str | int]) -> Iterator[Problem]:
    """Every name or value that may not be set."""
    for name, value in variables.items():
        where = f"hardware.env.{name}"
        if name in _OURS:
            yield Problem(f"{name} is not set here", where, f"set {_OURS[name]}")
        elif not _NAME.fullmatch(name) or not name.startswith(PREFIXES):
            yield Problem(
                f"{name} may not be set by a configuration",
                where,
                f"names of {', '.join(PREFIXES)}; or set it in your shell",
            )
        elif _REACHES_OUT.search(name):
            yield Problem(
                f"{name} loads code, opens files or connects to an address",
                where,
                "set it in your shell, if you need it",
            )
        elif not str(value).isprintable():
            yield Problem(f"{name} has a value that cannot be printed", where, "plain text in one line")


def interfaces(hardware: HardwareConfig) -> Iterator[Problem]:
    """Interfaces that are named for the ranks of one node."""
    for name in _INTERFACES:
        if hardware.nodes == 1 and name in hardware.env:
            yield Problem(
                f"{name} is of several nodes: the ranks of one node meet on its loopback interface",
                f"hardware.env.{name}",
                f"'~hardware.env.{name}', or hardware.nodes of more than 1",
            )


def shell(run: RunConfig, env: Mapping[str, str]) -> Iterator[Problem]:
    """Variables of the user's shell that say something else than the configuration."""
    mode = env.get("WANDB_MODE", "")
    if "wandb_online" in run.tracking and "wandb" in run.tracking:
        yield Problem(
            "wandb is asked for offline and online", "tracking", "tracking=[wandb], or tracking=[wandb_online]"
        )
    wandb = services(run.tracking).get("wandb")
    if wandb is not None and mode not in ("", wandb.mode):
        others = {"online": "[wandb_online]", "offline": "[wandb]"}
        fix = f"tracking={others.get(mode, '[]')}, or unset WANDB_MODE"
        yield Problem(f"WANDB_MODE is {mode}, but tracking has wandb {wandb.mode}", "tracking", fix)
    if wandb is not None and env.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        yield Problem("WANDB_DISABLED is set, but tracking has wandb", "tracking", "tracking=[], or unset it")
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and run.hardware.gpu != "cpu":
        n_visible = _count(visible)
        if n_visible < run.hardware.ranks_per_node:
            yield Problem(
                f"CUDA_VISIBLE_DEVICES={visible} shows {n_visible} GPU(s), hardware.ranks_per_node is "
                f"{run.hardware.ranks_per_node}",
                "hardware.ranks_per_node",
                (f"hardware.ranks_per_node={n_visible}" if n_visible else "hardware=cpu") + ", or show more GPUs",
            )


def _count(visible: str) -> int:
    """GPUs that CUDA_VISIBLE_DEVICES shows: those before the first that there cannot be, as CUDA reads it."""
    names = [name.strip() for name in visible.split(",")]
    return next((n for n, name in enumerate(names) if not name or name.startswith("-")), len(names))


def without_effect(run: RunConfig, env: Mapping[str, str]) -> list[str]:
    """Variables of the user's shell that are meant for this run and do nothing, in words."""
    has_wandb = "wandb" in services(run.tracking)
    decided = [name for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME") if env.get(name)]
    asking = [name for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME", "WANDB_RUN_GROUP") if env.get(name)]
    said = []
    threads = env.get("OMP_NUM_THREADS")
    if threads and threads != str(run.hardware.threads):
        said.append(
            f"OMP_NUM_THREADS={threads} has no effect: each rank has {run.hardware.threads} thread(s) "
            f"(hardware.threads={threads if threads.isdecimal() and threads != '0' else 1})"
        )
    if has_wandb and decided:
        said.append(f"{', '.join(decided)} has no effect: folder and id of a wandb run are those of its stage")
    if asking and not has_wandb:
        said.append(f"{', '.join(asking)} has no effect: tracking has no wandb (tracking=[wandb] is offline)")
    if env.get("TENSORBOARD_DIR") and "tensorboard" not in run.tracking:
        said.append("TENSORBOARD_DIR has no effect: tracking has no tensorboard (tracking=[tensorboard])")
    return said
