"""Rules about optimizers: which engine steps them, where their state is kept, and what has to be installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.errors import Problem
from vlmrun.hardware import gpus, packages


def _place(stage: TrainStage, where: str) -> Iterator[Problem]:
    """Where the state of each is kept."""
    name, place = stage.optim.optimizer, f"{where}.optim.optimizer"
    if name == "cpu_adam" and (stage.engine != "deepspeed" or stage.offload == "none"):
        held = f"engine is {stage.engine}" if stage.engine != "deepspeed" else "offload is none"
        yield Problem(
            f"cpu_adam is for optimizer state that DeepSpeed keeps in host memory ({held})",
            place,
            f"{place}=adamw, or {where}.offload=cpu {where}.zero=3",
        )
    if not (stage.optim.eight_bits or stage.optim.paged):
        return
    if stage.engine == "fsdp":
        yield Problem(
            f"fsdp shards state that {name} cannot be sharded in", place, f"{where}.engine=deepspeed, or {place}=adamw"
        )
    if stage.offload != "none":
        yield Problem(
            f"{name} keeps its state on the GPU, and offload is {stage.offload}", place, f"{place}=cpu_adam, or adamw"
        )


def _pages(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    name = run.hardware.gpu
    if stage.optim.paged and name in gpus.GPUS and gpus.find(name).is_cpu:
        plain = "adamw_8bit" if stage.optim.eight_bits else "adamw"
        yield Problem(
            "paged state moves between a GPU and host memory, and there is no GPU",
            f"{where}.optim.optimizer",
            f"{where}.optim.optimizer={plain}",
        )


def _installed(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    place = f"{where}.optim.optimizer"
    if stage.optim.eight_bits or stage.optim.paged:
        yield from packages.bitsandbytes(place)
    if stage.optim.optimizer == "cpu_adam":
        missing = [] if shutil.which("c++") or shutil.which("g++") else ["a C++ compiler (g++)"]
        missing += [] if find_spec("ninja") or shutil.which("ninja") else ["ninja"]
        if missing:
            yield Problem(
                f"cpu_adam is compiled at its first use, which needs {' and '.join(missing)}",
                place,
                f"install it, or {place}=adamw",
            )


def _average(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    if stage.ema is None:
        return
    numbers = stage.deepspeed
    others = {
        "offload=nvme": stage.offload == "nvme" or numbers.offload_param == "nvme",
        "hardware.tensor_parallel": run.hardware.tensor_parallel > 1,
        "ZeRO++": numbers.zero_hpz_partition_size > 1 or numbers.zero_quantized_weights,
    }
    for name in (name for name, used in others.items() if used):
        yield Problem(f"an average of weights is not kept with {name}", f"{where}.ema", f"{where}.ema=null")


_TRAIN = (TrainStage,)
RULES = (
    Rule("average-of-weights", "An average is kept of weights whose pieces are in memory and are each on one rank.",
         ("stage.*.ema", "stage.*.offload", "stage.*.deepspeed", "hardware.tensor_parallel"), _average, of=_TRAIN),
    Rule("optimizers", "DeepSpeed's CPU Adam is for offloaded state, and state in 8 bits or pages stays on the GPU.",
         ("stage.*.optim.optimizer", "stage.*.engine", "stage.*.offload"), _place, of=_TRAIN, alone=True),
    Rule("paged-optimizers", "State that moves between a GPU and host memory needs a GPU.",
         ("stage.*.optim.optimizer", "hardware.gpu"), _pages, of=_TRAIN),
    Rule("optimizer-packages", "What an optimizer is made of is installed.", ("stage.*.optim.optimizer",), _installed,
         of=_TRAIN, here=True),
)  # fmt: skip
