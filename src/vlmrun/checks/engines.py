"""Rules about engines: what each of them can train, offload, ZeRO++, a DeepSpeed JSON of one's own, shared models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmrun.arch import families
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.paths import read_config
from vlmrun.config.schema import ModelConfig, RunConfig, TrainStage
from vlmrun.errors import ConfigError, Problem, VlmrunError
from vlmrun.hardware import gpus
from vlmrun.zero import config as zero
from vlmrun.zero import user_json

# No result depends on it here: only the file's numbers are compared.
_ANY_WIDTH = 1024

_HEADS = ("num_attention_heads", "num_key_value_heads")


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
    family = families.find(str(shape.get("model_type") or ""))
    if tensor > 1 and family.name and not family.tensor_parallel:
        yield Problem(
            f"how the layers of {family.name} can be shared is not known",
            "hardware.tensor_parallel",
            f"hardware.tensor_parallel=1 and ZeRO-3; known: {', '.join(families.having('tensor_parallel'))}",
        )
    if sequence > 1 and family.own_attention:
        yield Problem(
            f"{family.name} attends in its own way, which ranks cannot share",
            "hardware.sequence_parallel",
            "hardware.sequence_parallel=1",
        )
    if sequence > 1 and family.beside is not None:
        yield Problem(
            f"{family.name} looks at other positions through {family.beside} as well, which ranks cannot share",
            "hardware.sequence_parallel",
            "hardware.sequence_parallel=1",
        )
    window = shape.get("sliding_window", family.window)
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
    if stage.offload == "nvme":
        yield Problem("fsdp offloads to host memory only", f"{where}.offload", f"{where}.offload=cpu")
    if stage.compat.fp16_tower:
        yield Problem("fsdp holds one type of weights", f"{where}.compat.fp16_tower", f"{where}.engine=deepspeed")


def _zero_plus_plus(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    hardware = run.hardware
    numbers = stage.deepspeed
    quantized = [name for name in ("zero_quantized_weights", "zero_quantized_gradients") if getattr(numbers, name)]
    used = [*quantized, *(["zero_hpz_partition_size"] if numbers.zero_hpz_partition_size > 1 else [])]
    if used and (stage.engine != "deepspeed" or stage.zero != 3):
        yield Problem(
            f"ZeRO++ ({', '.join(used)}) is of ZeRO-3", f"{where}.deepspeed", f"{where}.zero=3, or leave it out"
        )
    if quantized and hardware.gpu in gpus.GPUS and gpus.find(hardware.gpu).is_cpu:
        yield Problem(
            f"{', '.join(quantized)}: DeepSpeed's kernels that pack them exist for GPUs only",
            f"{where}.deepspeed",
            "leave them false on a CPU",
        )
    if derived.ranks(hardware) % numbers.zero_hpz_partition_size:
        yield Problem(
            f"{derived.ranks(hardware)} rank(s) cannot be cut into groups of {numbers.zero_hpz_partition_size}",
            f"{where}.deepspeed.zero_hpz_partition_size",
            "usually the ranks of one node",
        )


def _own(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """A DeepSpeed JSON of the user's own."""
    hardware = run.hardware
    path = stage.deepspeed.config
    if path is None:
        return
    place = f"{where}.deepspeed.config"
    if stage.engine != "deepspeed":
        yield Problem(f"engine {stage.engine} reads no DeepSpeed JSON", place, f"{where}.engine=deepspeed, or null")
        return
    unit = stage.micro_batch * derived.data_ranks(hardware)
    if unit == 0 or hardware.gpu not in gpus.GPUS:
        return  # problems of their own
    if stage.global_batch % unit or (stage.zero == 0 and hardware.precision == "bf16"):
        return  # checks/values.py says so; there is no dict to compare with
    try:
        own = user_json.read(path, place)
    except ConfigError as error:
        yield from error.problems
        return
    ours = zero.deepspeed_config(stage, hardware, hidden_dim=_ANY_WIDTH)
    yield from user_json.problems(own, stage, ours, where)


def _tensor_parallel(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    hardware = run.hardware
    if hardware.tensor_parallel == 1:
        return
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


def _sequence_parallel(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    hardware = run.hardware
    if hardware.sequence_parallel == 1:
        return
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


_TRAIN = (TrainStage,)
RULES = (
    Rule("groups-of-ranks", "Ranks that share a model or a sequence divide all ranks, and the LLM's heads and layers.",
         ("hardware.tensor_parallel", "hardware.sequence_parallel", "model.llm"), _groups),
    Rule("fsdp", "fsdp shards gradients and optimizer state, of weights of one type that are not quantized.",
         ("stage.*.engine", "stage.*.zero", "stage.*.tune.llm", "stage.*.offload", "stage.*.compat.fp16_tower"), _fsdp,
         of=_TRAIN, alone=True),
    Rule("zero-plus-plus", "ZeRO++ belongs to ZeRO-3, quantized transfers to GPUs, and its groups divide the ranks.",
         ("stage.*.deepspeed", "stage.*.zero", "hardware.gpu"), _zero_plus_plus, of=_TRAIN),
    Rule("deepspeed-json", "A DeepSpeed JSON of the user's own agrees with the run.",
         ("stage.*.deepspeed.config",), _own, of=_TRAIN),
    Rule("tensor-parallel", "Layers of the LLM are shared in DeepSpeed, where the LLM trains whole or not at all.",
         ("hardware.tensor_parallel", "stage.*.engine", "stage.*.tune.llm", "stage.*.zero"), _tensor_parallel,
         of=_TRAIN),
    Rule("sequence-parallel", "Sequences are shared in DeepSpeed or fsdp, through sdpa, and not in packed rows.",
         ("hardware.sequence_parallel", "hardware.attention", "stage.*.engine", "stage.*.packing"), _sequence_parallel,
         of=_TRAIN),
)  # fmt: skip
