"""Stage + hardware -> the DeepSpeed dict. With `zero_own` the only place that speaks DeepSpeed's language.

Pure, and complete: every number that changes a result stands in the dict, nothing is "auto". DeepSpeed ignores unknown
top-level keys and fills gaps with defaults of its own (a missing `gradient_clipping` clips at 1.0), so the dict is
compared with the list of keys we mean to write before anybody sees it.
"""

from __future__ import annotations

from typing import Any

from vlmrun.config import derived
from vlmrun.config.schema import DeepSpeed, HardwareConfig, TrainStage
from vlmrun.hardware import gpus

TOP_LEVEL_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "steps_per_print",
        "wall_clock_breakdown",
        "prescale_gradients",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "bf16",
        "fp16",
        "data_types",
        "zero_optimization",
    }
)
# Written where they are needed.
SOMETIMES = frozenset({"tensor_parallel"})

# DeepSpeed's own progress lines: never. Our log speaks.
_NEVER = 2**31 - 1
# Buckets smaller than this cost more in calls than they save in memory.
_SMALLEST_BUCKET = 2**20


def deepspeed_config(stage: TrainStage, hardware: HardwareConfig, *, hidden_dim: int) -> dict[str, Any]:
    """The whole dict for `deepspeed.initialize`, before a JSON of the user's own.

    Args:
        hidden_dim: the LLM's width, which sizes the buckets (its square is one weight matrix).
    """
    bf16 = hardware.precision == "bf16"
    # bf16 at stage 0 builds an optimizer whose Adam count is one ahead; checks.py refuses it before a job is written.
    assert not (bf16 and stage.zero == 0), "bf16 needs ZeRO stage 1 or higher"
    config = {
        # DeepSpeed counts a sample once for every rank that reads it.
        "train_batch_size": stage.global_batch * derived.replicas(hardware),
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": derived.accumulation(stage, hardware),
        "gradient_clipping": stage.optim.max_grad_norm,
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
        # Our optimizer is torch's AdamW: it needs no compiler, and DeepSpeed shards it as well as its own.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "fp16": _fp16(stage.deepspeed) if hardware.precision == "fp16" else {"enabled": False},
        # Gradients of several micro batches are summed in fp32 also when the weights are bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(stage, hardware, hidden_dim) | _offload(stage),
    }
    if hardware.tensor_parallel > 1:
        config["tensor_parallel"] = {"autotp_size": hardware.tensor_parallel}
    refuse_unknown(config)
    return config


def refuse_unknown(config: dict[str, Any]) -> None:
    """Stops a misspelled top-level key, which DeepSpeed would silently ignore."""
    unknown = sorted(set(config) - TOP_LEVEL_KEYS - SOMETIMES)
    missing = sorted(TOP_LEVEL_KEYS - set(config))
    assert not unknown, f"DeepSpeed would ignore {unknown}"
    assert not missing, f"DeepSpeed would choose {missing} itself"


def offloads(stage: TrainStage) -> dict[str, str]:
    """Where the optimizer state and the parameters lie: none, cpu or nvme."""
    own = stage.deepspeed.offload_param
    parameters = (stage.offload if own is None else own) if stage.zero == 3 else "none"
    return {"offload_optimizer": stage.offload, "offload_param": parameters}


def _fp16(numbers: DeepSpeed) -> dict[str, Any]:
    """Dynamic loss scaling."""
    return {"enabled": True, "loss_scale": 0, **numbers.fp16.model_dump()}


def _offload(stage: TrainStage) -> dict[str, Any]:
    numbers = stage.deepspeed
    found = {}
    for block, device in offloads(stage).items():
        if device != "none":
            found[block] = {"device": device, "pin_memory": numbers.pin_memory}
        if device == "nvme":
            found[block]["nvme_path"] = numbers.nvme_path
    return found


def _zero(stage: TrainStage, hardware: HardwareConfig, hidden_dim: int) -> dict[str, Any]:
    """The numbers that a ZeRO stage knows."""
    numbers = stage.deepspeed
    config: dict[str, Any] = {"stage": stage.zero}
    if stage.zero == 0:
        return config
    bucket = max(hidden_dim * hidden_dim, _SMALLEST_BUCKET)
    config |= {
        "contiguous_gradients": numbers.contiguous_gradients,
        "reduce_scatter": numbers.reduce_scatter,
        "reduce_bucket_size": _given(numbers.reduce_bucket_size, bucket),
        "allgather_partitions": True,
        "allgather_bucket_size": numbers.allgather_bucket_size,
        # Overlap needs streams; on a CPU it only adds bookkeeping.
        "overlap_comm": numbers.overlap_comm and not gpus.find(hardware.gpu).is_cpu,
        "round_robin_gradients": numbers.round_robin_gradients,
        "sub_group_size": numbers.sub_group_size,
    }
    if stage.zero == 3:
        config |= {
            "stage3_prefetch_bucket_size": _given(numbers.stage3_prefetch_bucket_size, bucket * 9 // 10),
            # Small enough that a model of any width is really partitioned, not only the large ones.
            "stage3_param_persistence_threshold": _given(numbers.stage3_param_persistence_threshold, 10 * hidden_dim),
            "stage3_max_live_parameters": numbers.stage3_max_live_parameters,
            "stage3_max_reuse_distance": numbers.stage3_max_reuse_distance,
            "stage3_gather_16bit_weights_on_model_save": True,
            # The default replaces torch's linear for the whole process, and later work differs in its last bits.
            "memory_efficient_linear": False,
            "zero_hpz_partition_size": numbers.zero_hpz_partition_size,
            "zero_quantized_weights": numbers.zero_quantized_weights,
            "zero_quantized_gradients": numbers.zero_quantized_gradients,
        }
    return config


def _given(number: int | None, otherwise: int) -> int:
    return otherwise if number is None else number
