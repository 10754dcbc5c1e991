"""Going on with another number of ranks: DeepSpeed's universal checkpoint cuts optimizer state anew.

What was measured: ZeRO 1, 2 and 3, full, LoRA and QLoRA, fp32 and bf16, from one rank to two and back. A checkpoint of
ZeRO-0 is whole on every rank and needs nothing. Loss scaling (fp16), offloaded state and other engines were not tried:
they are refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import logs
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.train import dist
from vlmrun.train.engine import DeepSpeedEngine, Engine, quiet

log = logs.get(__name__)

_LAST_LINES = 3


def is_possible(stage: TrainStage, hardware: HardwareConfig) -> bool:
    """Whether a checkpoint of this layout can be read by another number of ranks."""
    return stage.engine == "deepspeed" and stage.offload == "none" and hardware.precision != "fp16"


def load(engine: Engine, checkpoint: Path, stage: TrainStage) -> None:
    """Loads a checkpoint that another number of ranks has written. A collective.

    Raises:
        CheckpointError: when DeepSpeed cannot convert it.
    """
    assert isinstance(engine, DeepSpeedEngine), "is_possible was asked"
    if stage.zero == 0:
        engine.load(checkpoint)
        return
    universal = checkpoint.with_name(f".tmp-universal-{checkpoint.name}")
    problem = _convert(checkpoint / engine.TAG, universal / engine.TAG, stage.zero) if dist.is_main() else None
    problem = dist.broadcast_object(problem)
    if problem is not None:
        raise CheckpointError(
            f"the checkpoint cannot be cut anew for {dist.world()} ranks: {problem}",
            str(checkpoint),
            "go on with the number of ranks that wrote it",
        )
    with quiet(), _universal(engine.inner):
        path, _ = engine.inner.load_checkpoint(
            str(universal), tag=engine.TAG, load_module_strict=False, load_lr_scheduler_states=False
        )
    assert path is not None
    dist.barrier()
    if dist.is_main():
        shutil.rmtree(universal, ignore_errors=True)


def _convert(source: Path, target: Path, zero: int) -> str | None:
    """Writes the universal form in a process of its own; returns what went wrong."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
        *("--input_folder", str(source), "--output_folder", str(target)),
        *("--num_extract_workers", "1", "--num_merge_workers", "1"),
    ]
    # Only ZeRO-3 leaves what the converter looks for; at the lower stages it is told to do without.
    command += ["--inject_missing_state"] if zero < 3 else []
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    log.debug("%s%s", done.stdout, done.stderr)
    return None if done.returncode == 0 else " | ".join(done.stderr.splitlines()[-_LAST_LINES:])


@contextlib.contextmanager
def _universal(inner: Any) -> Iterator[None]:
    """DeepSpeed asks its configuration which form to read, at the moment it reads."""
    config = inner._config
    config.load_universal_checkpoint = True
    try:
        yield
    finally:
        config.load_universal_checkpoint = False
