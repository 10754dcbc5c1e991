"""Resuming on another number of ranks: DeepSpeed's universal checkpoint reshards optimizer state.

What was measured: ZeRO 1, 2 and 3, full, LoRA and QLoRA, fp32 and bf16, from one rank to two and back. A checkpoint of
ZeRO-0 is whole on every rank and needs nothing, and FSDP2's reads itself on any number of ranks. Loss scaling (fp16),
offloaded state, and layers or sequences that ranks share were not tried: they are refused.
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

import torch

from vlmrun import logs
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.train import dist
from vlmrun.train.engine.base import Engine
from vlmrun.train.engine.deepspeed import DeepSpeedEngine, quiet

log = logs.get(__name__)

_LAST_LINES = 3


def is_possible(stage: TrainStage, hardware: HardwareConfig) -> bool:
    """Whether a checkpoint of this layout can be read by another number of ranks."""
    if stage.engine == "fsdp":
        return True
    alone = hardware.tensor_parallel == hardware.sequence_parallel == 1
    plain = stage.optim.optimizer == "adamw"  # DeepSpeed's converter knows no other state
    return stage.engine == "deepspeed" and stage.offload == "none" and hardware.precision != "fp16" and alone and plain


def load(engine: Engine, checkpoint: Path, stage: TrainStage) -> None:
    """Loads a checkpoint that another number of ranks has written. A collective.

    Raises:
        CheckpointError: when DeepSpeed cannot convert it.
    """
    if stage.zero == 0 or not isinstance(engine, DeepSpeedEngine):
        engine.load(checkpoint)
        return
    universal = checkpoint.with_name(f".tmp-universal-{checkpoint.name}")
    problem = _convert(checkpoint / engine.TAG, universal / engine.TAG, stage.zero) if dist.is_main() else None
    problem = dist.broadcast_object(problem)
    if problem is not None:
        raise CheckpointError(
            f"the checkpoint cannot be resharded for {dist.world()} ranks: {problem}",
            str(checkpoint),
            "resume with the number of ranks that wrote it",
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
    # Only ZeRO-3 leaves what the converter looks for; at the lower stages an option lets it do without.
    command += ["--inject_missing_state"] if zero < 3 else []
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    log.debug("%s%s", done.stdout, done.stderr)
    return None if done.returncode == 0 else " | ".join(done.stderr.splitlines()[-_LAST_LINES:])


@contextlib.contextmanager
def _universal(inner: Any) -> Iterator[None]:
    """DeepSpeed asks its configuration which form to read, at the moment it reads.

    At ZeRO-3 it then gives every group the weight decay of the first, and all groups one tensor to count Adam's steps
    in, which counts several for each (0.19.8, stage3.py, load_hp_checkpoint_state_from_checkpoint_dir_stage3).
    """
    config, groups = inner._config, inner.optimizer.param_groups
    ours = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    config.load_universal_checkpoint = True
    try:
        yield
    finally:
        config.load_universal_checkpoint = False
    for group, values in zip(inner.optimizer.param_groups, ours, strict=True):
        group.update(values)
    adam = inner.optimizer.optimizer
    for state in adam.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
