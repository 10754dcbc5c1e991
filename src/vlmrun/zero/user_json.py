"""A DeepSpeed JSON of the user's own, merged over our dict. What contradicts the stage is refused, all of it at once.

DeepSpeed itself obeys such a file silently: a scheduler block replaces the schedule, a batch size the batch. Here a
value that the stage decides must be "auto" or the stage's; numbers that only move work about are taken over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmrun import regular
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError, ConfigError, Problem, suggest
from vlmrun.zero import config as zero

AUTO = "auto"
# What a file may set freely, since it changes no result.
FREE = frozenset({"steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler",
                  "comms_logger", "aio"})  # fmt: skip
_FREE_BLOCKS = frozenset({"flops_profiler", "comms_logger", "aio"})
_SWITCHES = frozenset({
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "contiguous_gradients", "reduce_scatter",
    "use_multi_rank_bucket_allreduce", "allgather_partitions", "overlap_comm", "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save", "pin_memory", "pipeline_read", "pipeline_write", "fast_init",
})  # fmt: skip
ZERO_FREE = frozenset(
    {
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "sub_group_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_gather_16bit_weights_on_model_save",
        "round_robin_gradients",
    }
)
# What vlmrun decides, and the key of ours that says it.
_DECIDED = {
    "train_batch_size": "{stage}.global_batch",
    "train_micro_batch_size_per_gpu": "{stage}.micro_batch",
    "gradient_accumulation_steps": "{stage}.global_batch, {stage}.micro_batch and hardware",
    "gradient_clipping": "{stage}.optim.max_grad_norm",
    "bf16.enabled": "hardware.precision",
    "fp16.enabled": "hardware.precision",
    "fp16.auto_cast": "hardware.precision",
    "zero_optimization.stage": "{stage}.zero",
    "zero_optimization.offload_optimizer.device": "{stage}.offload",
    "zero_optimization.offload_param.device": "{stage}.deepspeed.offload_param",
    "zero_optimization.offload_optimizer.nvme_path": "{stage}.deepspeed.nvme_path",
    "zero_optimization.offload_param.nvme_path": "{stage}.deepspeed.nvme_path",
    "zero_optimization.zero_hpz_partition_size": "{stage}.deepspeed.zero_hpz_partition_size",
    "zero_optimization.zero_quantized_weights": "{stage}.deepspeed.zero_quantized_weights",
    "zero_optimization.zero_quantized_gradients": "{stage}.deepspeed.zero_quantized_gradients",
    "zero_optimization.memory_efficient_linear": "",
    "tensor_parallel.autotp_size": "hardware.tensor_parallel",
    "data_types.grad_accum_dtype": "",
    "prescale_gradients": "",
    "zero_allow_untested_optimizer": "",
    "zero_force_ds_cpu_optimizer": "",
}
_FP16_FREE = frozenset({"loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale", "loss_scale"})
OFFLOAD_FREE = frozenset({"pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "pipeline_read",
                           "pipeline_write", "fast_init"})  # fmt: skip
_BLOCKS = {
    "fp16": _FP16_FREE,
    "bf16": frozenset[str](),
    "data_types": frozenset[str](),
    "tensor_parallel": frozenset[str](),
    "zero_optimization": ZERO_FREE,
    "zero_optimization.offload_optimizer": OFFLOAD_FREE,
    "zero_optimization.offload_param": OFFLOAD_FREE,
}
# The published zero3_offload.json writes this one key without its prefix.
_ALIASES = {"gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save"}
_REFUSED = {
    "scheduler": "the schedule is {stage}.optim.schedule; what WarmupLR did to the published runs is "
    "{stage}.compat.offload_schedule=true",
    "activation_checkpointing": "DeepSpeed's checkpoints need a model written for them: "
    "{stage}.gradient_checkpointing=true, {stage}.offload_checkpoints=true",
    "wandb": "tracking is the run's: tracking=[wandb]",
    "tensorboard": "tracking is the run's: tracking=[tensorboard]",
}


def read(path: str, where: str) -> dict[str, Any]:
    """The file's object.

    Raises:
        ConfigError: when it is missing or no JSON object.
    """
    try:
        regular.require(Path(path).expanduser(), json=True)
        found = json.loads(Path(path).expanduser().read_text("utf-8"))
    except CheckpointError as error:
        raise ConfigError(error.problems[0].what, where, "the path of a DeepSpeed JSON") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", where, "the path of a DeepSpeed JSON") from None
    except (ValueError, RuntimeError) as error:  # nested too deeply as well, or in the home of no user
        raise ConfigError(f"{path} is no JSON: {error}", where, "the path of a DeepSpeed JSON") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object", where, "the path of a DeepSpeed JSON")
    return found


def complete(stage: TrainStage, hardware: HardwareConfig, *, hidden_dim: int, name: str) -> dict[str, Any]:
    """Our dict with the user's file merged over it.

    Raises:
        ConfigError: with everything in the file that contradicts the stage or is unknown.
    """
    config = zero.deepspeed_config(stage, hardware, hidden_dim=hidden_dim)
    path = stage.deepspeed.config
    if path is None:
        return config
    own = read(path, f"stage.{name}.deepspeed.config")
    found = list(problems(own, stage, config, f"stage.{name}"))
    if found:
        raise ConfigError(found)
    return _merged(config, _clean(own))


def problems(own: dict[str, Any], stage: TrainStage, config: dict[str, Any], where: str) -> Iterator[Problem]:
    """Everything in a file that contradicts the stage, or that DeepSpeed would ignore.

    Args:
        config: our dict, for the stage.
    """
    place = f"{where}.deepspeed.config ({stage.deepspeed.config})"
    for key, value in own.items():
        if key in _REFUSED and not (key == "scheduler" and _published_schedule(value, stage)):
            yield Problem(f"{key} contradicts the stage", place, f"take it out: {_REFUSED[key].format(stage=where)}")
        elif key == "optimizer":
            yield from _optimizer(value, stage, where, place)
        elif key in FREE:
            yield from _typed(key, key, value, place)
        elif key not in _REFUSED:
            yield from _value(key, value, config.get(key), where, place)


def _value(path: str, value: Any, ours: Any, where: str, place: str) -> Iterator[Problem]:
    """Problems of one key, or of everything below it."""
    if value == AUTO:
        return
    if path in _BLOCKS:
        if not isinstance(value, dict):
            yield Problem(f"{path} is a block", place, f'"{path}": {{...}}')
            return
        for name, inner in value.items():
            known = _ALIASES.get(name, name)
            if known not in _BLOCKS[path]:
                yield from _value(f"{path}.{known}", inner, (ours or {}).get(known), where, place)
            else:
                yield from _typed(f"{path}.{name}", known, inner, place)
    elif path in _DECIDED:
        # Without a block of ours, nothing is meant: no offload, no fp16.
        meant = ours if ours is not None else _absent(path)
        if value != meant:
            says = _DECIDED[path].format(stage=where)
            fix = f"take it out, or set {says}" if says else "take it out"
            yield Problem(f"{path} is {json.dumps(value)}, the stage's is {json.dumps(meant)}", place, fix)
    else:
        yield Problem(f"{path} is no key that vlmrun hands on to DeepSpeed", place, _nearest(path))


def _typed(path: str, name: str, value: Any, place: str) -> Iterator[Problem]:
    """Whether a value that may be set freely is of a kind that DeepSpeed takes: else it fails after loading."""
    if name in _FREE_BLOCKS:
        fits, kind = isinstance(value, dict), "a block: {...}"
    elif name in _SWITCHES:
        fits, kind = isinstance(value, bool), 'true, false or "auto"'
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, kind = number and value >= 0 and value % 1 == 0, 'a whole number or "auto"'
    if not fits and (value != AUTO or name in _FREE_BLOCKS):
        yield Problem(f"{path} is {json.dumps(value)}", place, kind)


def _absent(path: str) -> Any:
    """What it means that our dict has no such key."""
    if path.endswith(".device"):
        return "none"
    if path.rpartition(".")[2] in ("autotp_size", "zero_hpz_partition_size"):
        return 1
    return (
        False
        if path.rpartition(".")[2]
        in ("auto_cast", "zero_quantized_weights", "zero_quantized_gradients", "memory_efficient_linear")
        else None
    )


def _nearest(path: str) -> str:
    block, _, name = path.rpartition(".")
    if not block:
        return suggest(name, {*FREE, *zero.TOP_LEVEL_KEYS, "optimizer"}, noun="keys")
    decided = {key.rpartition(".")[2] for key in _DECIDED if key.rpartition(".")[0] == block}
    return suggest(name, {*_BLOCKS[block], *decided}, noun="keys")


def _published_schedule(block: Any, stage: TrainStage) -> bool:
    """Whether a scheduler block is the published one, and the stage trains as it did."""
    if not stage.compat.offload_schedule or not isinstance(block, dict) or block.get("type") != "WarmupLR":
        return False
    parameters = block.get("params", {})
    return isinstance(parameters, dict) and all(value == AUTO for value in parameters.values())


def _optimizer(block: Any, stage: TrainStage, where: str, place: str) -> Iterator[Problem]:
    """An optimizer block may repeat what the stage says."""
    optim = stage.optim
    ours = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    given = block if isinstance(block, dict) else {}
    if given.get("type") not in ("AdamW", "Adam"):
        yield Problem(f"the optimizer {given.get('type')!r} is not the stage's", place, "AdamW, or take it out")
    parameters = given.get("params", {})
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        free = name in ("torch_adam", "adam_w_mode", "fused")
        if value != AUTO and not free and value != ours.get(name):
            yield Problem(
                f"optimizer.params.{name} is {json.dumps(value)}, the stage's is {json.dumps(ours.get(name))}",
                place,
                f"take it out, or set {where}.optim" + (f".{name}" if name in ours else ""),
            )


def _clean(own: dict[str, Any]) -> dict[str, Any]:
    """What is left to lay over our dict: no "auto", no blocks that were only compared."""
    kept = {}
    for key, value in own.items():
        if value == AUTO or key in ("optimizer", "scheduler"):
            continue
        kept[_ALIASES.get(key, key)] = _clean(value) if isinstance(value, dict) else value
    # An offload that is none is no offload: DeepSpeed would look for its buffers.
    return {
        key: value for key, value in kept.items() if not (isinstance(value, dict) and value.get("device") == "none")
    }


def _merged(ours: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
