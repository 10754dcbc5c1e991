"""Stage + hardware -> the DeepSpeed dict. The only place where DeepSpeed's names appear in a configuration.

Pure, and complete: every number that changes a result stands in the dict, nothing is "auto". DeepSpeed ignores unknown
top-level keys and fills gaps with defaults of its own (a missing `gradient_clipping` clips at 1.0), so the dict is
compared with the list of keys we mean to write before anybody sees it.
"""

from __future__ import annotations

from typing import Any

from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, TrainStage
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

# Dynamic loss scaling as the published files have it. Source: haotian-liu/LLaVA@c121f04:scripts/zero2.json
_FP16 = {
    "enabled": True,
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}

# DeepSpeed's own progress lines: never. Our log speaks.
_NEVER = 2**31 - 1
# Buckets smaller than this cost more in calls than they save in memory.
_SMALLEST_BUCKET = 2**20


def deepspeed_config(stage: TrainStage, hardware: HardwareConfig, *, hidden_dim: int) -> dict[str, Any]:
    """The whole dict for `deepspeed.initialize`.

    Args:
        hidden_dim: the LLM's width, which sizes the buckets (its square is one weight matrix).
    """
    bf16 = hardware.precision == "bf16"
    # bf16 at stage 0 builds an optimizer whose Adam count is one ahead; checks.py refuses it before a job is written.
    assert not (bf16 and stage.zero == 0), "bf16 needs ZeRO stage 1 or higher"
    config = {
        "train_batch_size": stage.global_batch,
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
        "fp16": _FP16 if hardware.precision == "fp16" else {"enabled": False},
        # Gradients of several micro batches are summed in fp32 also when the weights are bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(stage.zero, hardware, hidden_dim) | _offload(stage),
    }
    refuse_unknown(config)
    return config


def _offload(stage: TrainStage) -> dict[str, Any]:
    """Optimizer state in the computer's memory, and under ZeRO-3 the parameters too."""
    if stage.offload == "none":
        return {}
    place = {"device": "cpu", "pin_memory": True}
    return {"offload_optimizer": place} | ({"offload_param": place} if stage.zero == 3 else {})


def refuse_unknown(config: dict[str, Any]) -> None:
    """Stops a misspelt top-level key, which DeepSpeed would silently ignore."""
    unknown = sorted(set(config) - TOP_LEVEL_KEYS)
    missing = sorted(TOP_LEVEL_KEYS - set(config))
    assert not unknown, f"DeepSpeed would ignore {unknown}"
    assert not missing, f"DeepSpeed would choose {missing} itself"


def _zero(stage: int, hardware: HardwareConfig, hidden_dim: int) -> dict[str, Any]:
    bucket = max(hidden_dim * hidden_dim, _SMALLEST_BUCKET)
    config: dict[str, Any] = {"stage": stage}
    if stage == 0:
        return config
    config |= {
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        # Overlap needs streams; on a CPU it only adds bookkeeping.
        "overlap_comm": not gpus.find(hardware.gpu).is_cpu,
        "round_robin_gradients": False,
    }
    if stage == 3:
        config |= {
            "sub_group_size": 10**9,
            "stage3_prefetch_bucket_size": bucket * 9 // 10,
            # Small enough that a model of any width is really partitioned, not only the large ones.
            "stage3_param_persistence_threshold": 10 * hidden_dim,
            "stage3_max_live_parameters": 10**9,
            "stage3_max_reuse_distance": 10**9,
            "stage3_gather_16bit_weights_on_model_save": True,
            # The default replaces torch's linear for the whole process, and later work differs in its last bits.
            "memory_efficient_linear": False,
        }
    return config
