"""Rules about engines: what each of them can train, offload, ZeRO++, a DeepSpeed JSON of one's own, shared models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from vlmrun.config import derived
from vlmrun.config.paths import read_config
from vlmrun.config.schema import HardwareConfig, ModelConfig, RunConfig, TrainStage
from vlmrun.errors import ConfigError, Problem, VlmrunError
from vlmrun.hardware import gpus
from vlmrun.zero import config as zero
from vlmrun.zero import user_json

# No result depends on it here: only the file's numbers are compared.
_ANY_WIDTH = 1024
AIO = "apt-get install libaio-dev (and gcc, ninja: DeepSpeed compiles async_io at its first use), or offload: cpu"


# Families that transformers plans as whole columns and rows, which is what `train/engine/tensor_parallel.py` cuts;
# MiniCPM is held as Granite. A test compares with transformers.
TENSOR_PARALLEL = ("gemma2", "granite", "llama", "minicpm", "mistral", "phi", "qwen2")
# Families whose attention is not transformers' exchangeable one, or does more than sdpa (Gemma 2 caps its scores).
_OWN_ATTENTION = ("gemma2", "mpt")
_HEADS = ("num_attention_heads", "num_key_value_heads")


def check(run: RunConfig, *, here: bool = True) -> list[Problem]:
    """Every broken rule of the run's training stages.

    Args:
        here: also what this machine must have for it: a drive, and what drives it.
    """
    problems = list(_groups(run))
    if derived.data_ranks(run.hardware) == 0 or run.hardware.gpu not in gpus.GPUS:
        return problems
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage):
            where = f"stage.{name}"
            problems += _fsdp(stage, where)
            problems += _offload(stage, where)
            problems += _drive(stage, where) if here else []
            problems += _zero_plus_plus(stage, run.hardware, where)
            problems += _own(stage, run.hardware, where)
            problems += _shared(stage, run.hardware, where)
    return problems


def llm_shape(model: ModelConfig) -> dict[str, Any]:
    """The LLM's config values as far as the front half can see them; empty for a hub id that is not here."""
    arguments = model.llm.arguments
    if arguments.get("path") is None:
        config = arguments.get("config")
        return dict(config) if isinstance(config, dict) else {}
    try:
        return read_config(str(arguments["path"]))
    except VlmrunError:
        return {}  # checks/run.py says what is wrong with the path


def _groups(run: RunConfig) -> Iterator[Problem]:
    """Sizes of the groups of ranks that share a model or a sequence."""
    hardware = run.hardware
    tensor, sequence = hardware.tensor_parallel, hardware.sequence_parallel
    if derived.ranks(hardware) % (tensor * sequence):
        yield Problem(
            f"{derived.ranks(hardware)} rank(s) cannot be cut into groups of {tensor * sequence}",
            "hardware.tensor_parallel, hardware.sequence_parallel",
            "their product must divide hardware.nodes x hardware.ranks_per_node",
        )
    if tensor > 1 and sequence > 1:
        yield Problem(
            "tensor_parallel and sequence_parallel together are not built",
            "hardware.sequence_parallel",
            "one of them is 1; ZeRO-3 takes the rest",
        )
    shape = llm_shape(run.model)
    for name, size, keys in (("tensor_parallel", tensor, (*_HEADS, "intermediate_size")),
                             ("sequence_parallel", sequence, _HEADS)):  # fmt: skip
        counts = {key: shape[key] for key in keys if isinstance(shape.get(key), int)}
        fits = [n for n in range(1, 65) if not any(count % n for count in counts.values())]
        for key, count in counts.items():
            if count % size:
                yield Problem(
                    f"the LLM's {count} {key} cannot be shared by {size} ranks",
                    f"hardware.{name}",
                    f"hardware.{name}={' or '.join(map(str, fits))}",
                )
    family = shape.get("model_type")
    if tensor > 1 and family and family not in TENSOR_PARALLEL:
        yield Problem(
            f"how the layers of {family} can be shared is not known",
            "hardware.tensor_parallel",
            f"hardware.tensor_parallel=1 and ZeRO-3; known: {', '.join(TENSOR_PARALLEL)}",
        )
    if sequence > 1 and family in _OWN_ATTENTION:
        yield Problem(
            f"{family} attends in its own way, which ranks cannot share",
            "hardware.sequence_parallel",
            "hardware.sequence_parallel=1",
        )
    window = shape.get("sliding_window")
    if sequence > 1 and window and shape.get("use_sliding_window", True) and window < run.model.max_length:
        yield Problem(
            f"the LLM attends to the last {window} tokens only, which sequence_parallel does not do",
            "hardware.sequence_parallel",
            f"hardware.sequence_parallel=1, or model.max_length={window}",
        )


def _fsdp(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.engine != "fsdp":
        return
    if stage.zero not in (2, 3):
        yield Problem(
            "fsdp always cuts gradients and optimizer state",
            f"{where}.zero",
            f"{where}.zero=3 (weights as well) or {where}.zero=2 (weights gathered once per forward and backward)",
        )
    if stage.tune.llm == "qlora":
        yield Problem("fsdp cannot cut packed weights", f"{where}.engine", f"{where}.engine=deepspeed, {where}.zero=2")
    if stage.tune.llm == "new_tokens":
        yield Problem(
            "fsdp cuts the embedding whose rows are to be trained", f"{where}.engine", f"{where}.engine=deepspeed"
        )
    if stage.offload == "nvme":
        yield Problem("fsdp offloads to the computer's memory only", f"{where}.offload", f"{where}.offload=cpu")
    if stage.compat.fp16_tower:
        yield Problem("fsdp holds one type of weights", f"{where}.compat.fp16_tower", f"{where}.engine=deepspeed")


def _offload(stage: TrainStage, where: str) -> Iterator[Problem]:
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
    if _on_drive(stage) and stage.zero != 3:
        yield Problem("only ZeRO-3 can keep state on a drive", f"{where}.offload", f"{where}.zero=3, or offload=cpu")


def _on_drive(stage: TrainStage) -> bool:
    return stage.engine == "deepspeed" and "nvme" in zero.offloads(stage).values()


def _drive(stage: TrainStage, where: str) -> Iterator[Problem]:
    if not _on_drive(stage):
        return
    numbers = stage.deepspeed
    if numbers.nvme_path is None:
        yield Problem("which drive?", f"{where}.deepspeed.nvme_path", "a folder on a local NVMe drive")
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


def _zero_plus_plus(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    numbers = stage.deepspeed
    quantised = [name for name in ("zero_quantized_weights", "zero_quantized_gradients") if getattr(numbers, name)]
    used = [*quantised, *(["zero_hpz_partition_size"] if numbers.zero_hpz_partition_size > 1 else [])]
    if used and (stage.engine != "deepspeed" or stage.zero != 3):
        yield Problem(
            f"ZeRO++ ({', '.join(used)}) is of ZeRO-3", f"{where}.deepspeed", f"{where}.zero=3, or leave it out"
        )
    if quantised and gpus.find(hardware.gpu).is_cpu:
        yield Problem(
            f"{', '.join(quantised)}: DeepSpeed's kernels that pack them exist for GPUs only",
            f"{where}.deepspeed",
            "leave them false on a CPU",
        )
    if derived.ranks(hardware) % numbers.zero_hpz_partition_size:
        yield Problem(
            f"{derived.ranks(hardware)} rank(s) cannot be cut into groups of {numbers.zero_hpz_partition_size}",
            f"{where}.deepspeed.zero_hpz_partition_size",
            "usually the ranks of one node",
        )


def _own(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    """A DeepSpeed JSON of the user's own."""
    path = stage.deepspeed.config
    if path is None:
        return
    place = f"{where}.deepspeed.config"
    if stage.engine != "deepspeed":
        yield Problem(f"engine {stage.engine} reads no DeepSpeed JSON", place, f"{where}.engine=deepspeed, or null")
        return
    unit = stage.micro_batch * derived.data_ranks(hardware)
    if stage.global_batch % unit or (stage.zero == 0 and hardware.precision == "bf16"):
        return  # checks/values.py says so; there is no dict to compare with
    try:
        own = user_json.read(path, place)
    except ConfigError as error:
        yield from error.problems
        return
    ours = zero.deepspeed_config(stage, hardware, hidden_dim=_ANY_WIDTH)
    yield from user_json.problems(own, stage, ours, where)


def _shared(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    """Stages whose LLM, or whose sequences, several ranks share."""
    if hardware.tensor_parallel > 1:
        yield from _tensor_parallel(stage, hardware, where)
    if hardware.sequence_parallel > 1:
        yield from _sequence_parallel(stage, hardware, where)


def _tensor_parallel(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    place = "hardware.tensor_parallel"
    if stage.engine != "deepspeed":
        yield Problem(f"engine {stage.engine} has no tensor parallelism", place, f"{where}.engine=deepspeed")
    if stage.tune.llm not in ("full", "freeze"):
        yield Problem(
            f"tensor parallelism with tune.llm {stage.tune.llm} is not built", place, "hardware.tensor_parallel=1"
        )
    if stage.tune.llm == "freeze" and stage.zero == 1 and hardware.precision == "bf16":
        # DeepSpeed 0.19.8's BF16_Optimizer takes the norm of shared weights alone on every rank but the first.
        yield Problem("DeepSpeed's ZeRO-1 in bf16 fails where no shared layer learns", place, f"{where}.zero=2")


def _sequence_parallel(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    if stage.engine == "plain":
        yield Problem("engine plain is one process", "hardware.sequence_parallel", f"{where}.engine=deepspeed")
    if stage.packing is not None:
        yield Problem(
            "sequence parallelism cannot keep the samples of a packed row apart",
            "hardware.sequence_parallel",
            f"hardware.sequence_parallel=1, or {where}.packing=null",
        )
    if hardware.attention != "sdpa":
        yield Problem(
            "sequence parallelism attends through sdpa here", "hardware.sequence_parallel", "hardware.attention=sdpa"
        )
