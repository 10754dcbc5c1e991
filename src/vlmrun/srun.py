"""A rank that srun has started: tells the worker in torch's names what SLURM says in its own."""

from __future__ import annotations

import os
import sys

from vlmrun import worker
from vlmrun.errors import LaunchError

_NAMES = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}


def main() -> int:
    """Runs one rank; returns its exit code."""
    missing = [name for name in [*_NAMES.values(), "MASTER_ADDR", "MASTER_PORT"] if name not in os.environ]
    if missing:
        print(LaunchError(f"{', '.join(missing)} is not set", "srun", "start through vlmrun"), file=sys.stderr)  # noqa: T201
        return LaunchError.exit_code
    os.environ.update({ours: os.environ[theirs] for ours, theirs in _NAMES.items()})
    # Where SLURM gives every task a GPU of its own (--gpus-per-task), the one that a task sees is its first.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:
        os.environ["LOCAL_RANK"] = "0"
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
