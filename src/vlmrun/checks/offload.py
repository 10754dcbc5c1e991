"""Rules about state that is kept in host memory or on a drive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import Problem
from vlmrun.zero import config as zero

AIO = "apt-get install libaio-dev (and gcc, ninja: DeepSpeed compiles async_io at its first use), or offload: cpu"


def _sharded(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.offload != "none" and (stage.engine == "plain" or (stage.engine == "deepspeed" and stage.zero < 2)):
        held = f"engine is {stage.engine}" if stage.engine == "plain" else f"zero is {stage.zero}"
        yield Problem(
            f"offload={stage.offload} needs ZeRO 2 or 3, or fsdp ({held})",
            f"{where}.offload",
            f"{where}.zero=3" if stage.engine == "deepspeed" else f"{where}.engine=deepspeed {where}.zero=3",
        )


def _values(stage: TrainStage, where: str) -> Iterator[Problem]:
    numbers = stage.deepspeed
    if numbers.offload_param is not None and (stage.engine != "deepspeed" or stage.zero != 3):
        place = f"{where}.deepspeed.offload_param"
        yield Problem("only ZeRO-3 cuts parameters, and so can offload them", place, f"{place}=null")
    if numbers.nvme_path is not None and not _on_drive(stage):
        place = f"{where}.deepspeed.nvme_path"
        yield Problem("nothing is offloaded to a drive", place, f"{place}=null, or {where}.offload=nvme")
    if derived.recomputed_together(stage) > 1 and stage.engine == "fsdp":
        yield Problem(
            "fsdp gathers block by block what is recomputed together",
            f"{where}.gradient_checkpointing",
            f"{where}.gradient_checkpointing=true, or {where}.engine=deepspeed",
        )
    if stage.offload_checkpoints and not stage.gradient_checkpointing:
        yield Problem(
            "without gradient checkpointing there is nothing to offload",
            f"{where}.offload_checkpoints",
            f"{where}.gradient_checkpointing=true",
        )


def _to_drive(stage: TrainStage, where: str) -> Iterator[Problem]:
    if _on_drive(stage) and stage.zero != 3:
        yield Problem(f"offload=nvme needs ZeRO-3 (zero is {stage.zero})", f"{where}.offload", f"{where}.zero=3")


def _on_drive(stage: TrainStage) -> bool:
    return stage.engine == "deepspeed" and "nvme" in zero.offloads(stage).values()


def _drive(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if not _on_drive(stage) or stage.zero != 3:
        return
    numbers = stage.deepspeed
    if numbers.nvme_path is None:
        yield Problem(
            "offload=nvme needs a folder on a local NVMe drive (nvme_path is null)",
            f"{where}.deepspeed.nvme_path",
            f"{where}.deepspeed.nvme_path=/local_nvme",
        )
    else:
        folder = Path(numbers.nvme_path).expanduser()
        if not folder.is_dir():
            yield Problem(f"{folder} is no folder", f"{where}.deepspeed.nvme_path", f"mkdir -p {folder}")
        elif not os.access(folder, os.W_OK):
            yield Problem(
                f"{folder} cannot be written", f"{where}.deepspeed.nvme_path", "another folder, or rights to it"
            )
    if find_library("aio") is None:
        yield Problem("offload to a drive needs libaio, which is not installed", f"{where}.offload", AIO)


_TRAIN = (TrainStage,)
RULES = (
    Rule("offload", "State is offloaded only where it is sharded: by DeepSpeed's ZeRO 2 or 3, or by fsdp.",
         ("stage.*.offload", "stage.*.engine", "stage.*.zero"), _sharded, of=_TRAIN, alone=True,
         yields_to=("offload-to-drive",)),
    Rule("offload-to-drive", "State is offloaded to a drive by ZeRO-3 only.",
         ("stage.*.offload", "stage.*.zero"), _to_drive, of=_TRAIN, alone=True),
    Rule("offload-values", "Values of an offload are given where there is something to offload.",
         ("stage.*.deepspeed.offload_param", "stage.*.deepspeed.nvme_path", "stage.*.offload_checkpoints"), _values,
         of=_TRAIN, alone=True),
    Rule("drive", "A drive that state is offloaded to is there, can be written, and libaio is installed.",
         ("stage.*.deepspeed.nvme_path",), _drive, of=_TRAIN, here=True),
)  # fmt: skip
