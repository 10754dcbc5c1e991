"""Which micro batch fits, and what to change where none does; every answer is another plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vlmrun.config import derived, marks
from vlmrun.config.schema import HardwareConfig, Lora, Quant, TrainStage
from vlmrun.hardware import gpus
from vlmrun.plan.memory import Memory

Planned = Callable[[TrainStage], Memory]

# The published adapters' shape.   Source: haotian-liu/LLaVA@c121f04:scripts/v1_5/finetune_lora.sh
_LORA = Lora.model_validate(
    {"r": 128, "alpha": 256.0, "dropout": 0.05, "targets": "all-linear", "bias": "none", "modules_to_save": []}
)
_QUANT = Quant(bits=4, type="nf4", double=True)


@dataclass(frozen=True)
class Suggestion:
    """One more change on top of those before it.

    Attributes:
        overrides: of this change, for the command line.
        needed: bytes per GPU with all changes so far, at the micro batch asked for.
        host: bytes per rank in host memory then (offload).
        micro_batch: the largest not above it that fits then; None: not even 1 does.
        changes_result: whether another model comes out; else work is only moved about.
    """

    overrides: tuple[str, ...]
    needed: int
    host: int
    micro_batch: int | None
    changes_result: bool


def capacity(hardware: HardwareConfig) -> int | None:
    """Bytes of a GPU; None for the CPU, whose memory is the machine's."""
    return gpus.find(hardware.gpu).memory_bytes


def micro_batches(stage: TrainStage, data_ranks: int) -> list[int]:
    """All that divide a rank's share of the global batch, largest first."""
    share = stage.global_batch // data_ranks
    return [size for size in range(share, 0, -1) if share % size == 0]


def largest(stage: TrainStage, hardware: HardwareConfig, planned: Planned, *, at_most: int | None = None) -> int | None:
    """The largest micro batch that fits; None: none does, or it is not known what there is."""
    room = capacity(hardware)
    if room is None:
        return None
    for size in micro_batches(stage, derived.data_ranks(hardware)):
        if (at_most is None or size <= at_most) and planned(_with(stage, micro_batch=size)).total <= room:
            return size
    return None


def suggestions(name: str, stage: TrainStage, hardware: HardwareConfig, planned: Planned) -> list[Suggestion]:
    """Changes one after another, until what was asked for fits."""
    room = capacity(hardware)
    found: list[Suggestion] = []
    if room is None or planned(stage).total <= room:
        return found
    changed = stage
    for updates, overrides, changes_result in _changes(stage, hardware):
        changed = _with(changed, **updates)
        memory = planned(changed)
        fitting = largest(changed, hardware, planned, at_most=stage.micro_batch)
        said = tuple(f"stage.{name}.{override}" for override in overrides)
        if not said:
            if fitting is None:
                continue
            said = (f"stage.{name}.micro_batch={fitting}",)
            memory = planned(_with(changed, micro_batch=fitting))
        found.append(Suggestion(said, memory.total, memory.host, fitting, changes_result))
        if memory.total <= room and overrides:
            break
    return found


def _changes(stage: TrainStage, hardware: HardwareConfig) -> Iterator[tuple[dict[str, Any], tuple[str, ...], bool]]:
    """Fields, the same as overrides, and whether they change the result. No field at all: a smaller micro batch."""
    if not stage.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, ("gradient_checkpointing=true",), False
    if stage.micro_batch > 1:
        yield {}, (), False
    if stage.engine != "plain":
        for zero in range(stage.zero + 1, 4):
            yield {"zero": zero}, (f"zero={zero}",), False
        if stage.offload == "none":
            yield {"offload": "cpu"}, ("offload=cpu",), False
    if not stage.offload_checkpoints:
        yield {"offload_checkpoints": True}, ("offload_checkpoints=true",), False
    if hardware.tensor_parallel > 1:
        return  # adapters on layers that are cut are not built
    if stage.tune.llm == "full":
        yield {"tune": stage.tune.model_copy(update={"llm": "lora"}), "lora": _LORA}, _told("lora", _LORA), True
    if stage.tune.llm in ("full", "lora"):
        # Packed weights are not partitioned: DeepSpeed's ZeRO-3 refuses them.
        zero = max(1, min(stage.zero, 2))
        fields = {"tune": stage.tune.model_copy(update={"llm": "qlora"}), "quant": _QUANT, "lora": stage.lora or _LORA}
        moved = {"engine": "deepspeed", "zero": zero, "offload": "none"}
        told = (*_told("qlora"), f"quant={_text(_QUANT)}", *(f"{key}={value}" for key, value in moved.items()))
        yield fields | moved, told, True


def _told(tuning: str, lora: Lora | None = None) -> tuple[str, ...]:
    return (f"tune.llm={tuning}", *([f"lora={_text(lora)}"] if lora is not None else []))


def _text(node: Lora | Quant) -> str:
    fields = type(node).model_fields
    given = {key: value for key, value in node if not marks.is_neutral(fields[key], value)}
    shown = (f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items())
    inside = ", ".join(shown)
    return "{" + inside + "}"


def _with(stage: TrainStage, **updates: Any) -> TrainStage:
    return stage.model_copy(update=updates)
