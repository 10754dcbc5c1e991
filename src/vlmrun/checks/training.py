"""Rules about the order of samples, precision and the published quirks of a training stage."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, ModelConfig, Optim, RunConfig, TrainStage
from vlmrun.errors import Problem


def check(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    """Every broken rule of one stage."""
    yield from _order(stage, hardware, where)
    yield from _pictures(stage, where)
    yield from _engine(stage, hardware, where)
    yield from _quirks(stage, hardware, where)
    yield from _schedule(stage, where)
    yield from _held_out(stage, where)


def _order(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    weights = stage.data_weights
    if weights is not None and len(weights) != len(stage.data):
        yield Problem(
            f"{len(stage.data)} data sources, {len(weights)} weights", f"{where}.data_weights", "one for each source"
        )
    if stage.compat.transformers_order is not None and (weights is not None or derived.data_ranks(hardware) > 1):
        yield Problem(
            "transformers_order is the order of one process over the data as they are",
            f"{where}.compat.transformers_order",
            "null, or one rank and data_weights=null",
        )


def energon(run: RunConfig, stage: TrainStage, where: str) -> Iterator[Problem]:
    """Rules about the order of megatron-energon's loader."""
    asked = stage.order
    if asked is None:
        return
    kinds = {run.data[name].format for name in stage.data if name in run.data}
    if len(stage.data) != 1 or kinds - {"energon"}:
        yield Problem(
            f"order {asked.name} is that of one data set of format energon", f"{where}.order", f"{where}.order=null"
        )
    others = {
        "data_weights": stage.data_weights,
        "group_by_modality_length": stage.group_by_modality_length,
        "packing": stage.packing,
        "compat.transformers_order": stage.compat.transformers_order,
    }
    for name in (name for name, value in others.items() if value):
        yield Problem(
            f"{name} is another order than {asked.name}", f"{where}.{name}", f"{where}.order=null, or no {name}"
        )
    unit = asked.ranks * asked.micro_batch
    if stage.global_batch % unit:
        yield Problem(
            f"global_batch {stage.global_batch} is not a multiple of {asked.ranks} ranks x {asked.micro_batch} samples",
            f"{where}.order",
            f"{where}.global_batch={max(1, round(stage.global_batch / unit)) * unit}, or other ranks there",
        )


def _pictures(stage: TrainStage, where: str) -> Iterator[Problem]:
    if stage.image_decode == "draft" and stage.image_aspect in ("anyres", "slices"):
        yield Problem(
            f"a draft is too small for the tiles of {stage.image_aspect}",
            f"{where}.image_decode",
            f"{where}.image_decode=exact",
        )


def packing(stage: TrainStage, model: ModelConfig, where: str) -> Iterator[Problem]:
    """Rules about samples that share rows."""
    if stage.packing is None:
        return
    if stage.packing.length < model.max_length:
        yield Problem(
            f"a sample may have {model.max_length} tokens, but a row only {stage.packing.length}",
            f"{where}.packing.length",
            f"{where}.packing.length={model.max_length} or more, or a smaller model.max_length",
        )
    orders = {
        "group_by_modality_length": stage.group_by_modality_length,
        "compat.transformers_order": stage.compat.transformers_order is not None,
    }
    for name in (name for name, used in orders.items() if used):
        yield Problem(
            f"{name} is an order of batches of samples, and packing makes batches of rows",
            f"{where}.{name}",
            f"{where}.packing=null, or no {name}",
        )


def _engine(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    if stage.offload != "none" and (stage.engine == "plain" or stage.zero < 2):
        yield Problem(
            "only ZeRO 2 and 3, and fsdp, can keep state elsewhere",
            f"{where}.offload",
            f"{where}.zero=3 or offload=none",
        )
    if hardware.precision != "fp16":
        return
    if stage.engine != "deepspeed":
        yield Problem(
            f"fp16 needs DeepSpeed's loss scaling, which engine {stage.engine} has not",
            f"{where}.engine",
            f"{where}.engine=deepspeed, or another hardware.precision",
        )
    elif stage.zero == 0:
        yield Problem("DeepSpeed scales losses for fp16 at ZeRO 1 or more", f"{where}.zero", f"{where}.zero=2")


def _quirks(stage: TrainStage, hardware: HardwareConfig, where: str) -> Iterator[Problem]:
    compat = stage.compat
    if compat.labels not in (None, "minicpm") and stage.image_aspect == "slices":
        yield Problem(
            f"{compat.labels} never cut pictures into slices: its labels cannot be counted there",
            f"{where}.compat.labels",
            f"{where}.compat.labels=null, or another image_aspect",
        )
    if compat.labels == "minicpm" and compat.records:
        yield Problem(
            "records are taken as LLaVA's code took them, and MiniCPM-V's is another",
            f"{where}.compat.records",
            f"{where}.compat.records=false",
        )
    if compat.tower_no_grad and stage.tune.tower == "freeze":
        yield Problem(
            "tower_no_grad is about a tower that is trained, and it is frozen",
            f"{where}.compat.tower_no_grad",
            f"{where}.compat.tower_no_grad=false, or {where}.tune.tower=full",
        )
    if compat.fp16_tower and stage.engine == "deepspeed" and stage.zero == 3:
        yield Problem("ZeRO-3 holds one type of weights only", f"{where}.compat.fp16_tower", f"{where}.zero=2")
    if compat.fp16_tower and hardware.precision == "bf16":
        yield Problem(
            "fp16_tower is what happens when bf16 is off",
            f"{where}.compat.fp16_tower",
            "hardware.precision=fp32, or compat.fp16_tower=false",
        )
    rates = {stage.optim.connector_lr, stage.optim.tower_lr} - {None}
    if compat.offload_schedule and rates:
        yield Problem(
            "offload_schedule has one group of parameters, and so one rate",
            f"{where}.compat.offload_schedule",
            "connector_lr=null and tower_lr=null, as what ran",
        )


def _schedule(stage: TrainStage, where: str) -> Iterator[Problem]:
    optim = stage.optim
    if (optim.warmup_ratio is None) == (optim.warmup_steps is None):
        given = "neither is" if optim.warmup_ratio is None else "both are"
        yield Problem(
            f"the warm-up is told by warmup_ratio or by warmup_steps, and {given} given",
            f"{where}.optim.warmup_ratio",
            f"{where}.optim.warmup_ratio=null for steps, {where}.optim.warmup_steps=null for a share",
        )
    elif optim.warmup_ratio == 1.0:
        yield Problem(
            "the whole schedule is warm-up", f"{where}.optim.warmup_ratio", "a share of the steps, such as 0.03"
        )
    elif stage.max_steps is not None and derived.warmup_steps(optim, stage.max_steps) >= stage.max_steps:
        told = "warmup_ratio" if optim.warmup_steps is None else "warmup_steps"
        yield Problem(
            f"all {stage.max_steps} steps are warm-up, and the first has rate 0",
            f"{where}.optim.{told}",
            f"raise max_steps or lower {told}",
        )
    if stage.epochs is None and stage.max_steps is None:
        yield Problem("neither epochs nor max_steps says how long to train", f"{where}.epochs", f"{where}.epochs=1.0")
    if stage.epochs is None and stage.packing is not None:
        yield Problem("packing lays out whole passes over the data", f"{where}.epochs", f"{where}.epochs=1.0")
    falls_to = [name for name in ("min_lr_ratio", "min_lr", "decay_steps") if getattr(optim, name)]
    if falls_to and (optim.schedule == "constant" or stage.compat.offload_schedule):
        what = "schedule constant" if optim.schedule == "constant" else "compat.offload_schedule"
        neutral = "0.0" if falls_to[0] == "min_lr_ratio" else "null"
        yield Problem(
            f"{what} never falls to a lowest rate", f"{where}.optim.{falls_to[0]}", f"{falls_to[0]}={neutral}"
        )
    yield from schedule(optim, f"{where}.optim")


def schedule(optim: Optim, where: str) -> Iterator[Problem]:
    """Rules between the values of a schedule, whatever it is used for."""
    yield from _lowest(optim, where)
    yield from _warmup(optim, where)
    yield from _shape(optim, where)
    yield from _weight_decay(optim, where)


def _lowest(optim: Optim, place: str) -> Iterator[Problem]:
    """The rate that a schedule falls to."""
    if optim.min_lr is not None and optim.min_lr_ratio > 0:
        yield Problem(
            "the lowest rate is told as a rate and as a share",
            f"{place}.min_lr",
            f"{place}.min_lr_ratio=0.0, or min_lr=null",
        )
    if optim.min_lr is not None and optim.min_lr > optim.lr:
        yield Problem(f"the lowest rate {optim.min_lr:g} is above lr {optim.lr:g}", f"{place}.min_lr", "lower min_lr")


def _warmup(optim: Optim, place: str) -> Iterator[Problem]:
    """The rate that a schedule begins at, and when it has fallen."""
    if optim.warmup_from > optim.lr:
        yield Problem(
            f"the warm-up begins at {optim.warmup_from:g}, above lr {optim.lr:g}",
            f"{place}.warmup_from",
            "0.0, or less",
        )
    if optim.warmup_from > 0 and not (optim.warmup_ratio or optim.warmup_steps):
        yield Problem("there is no warm-up that could begin at a rate", f"{place}.warmup_from", "warmup_from=0.0")
    warmup = optim.warmup_steps
    if optim.decay_steps is not None and warmup is not None and warmup >= optim.decay_steps:
        yield Problem(
            f"the warm-up takes {warmup} steps, and the decay ends after {optim.decay_steps}",
            f"{place}.decay_steps",
            "more decay_steps, or fewer warmup_steps",
        )


def _shape(optim: Optim, where: str) -> Iterator[Problem]:
    """Values that belong to one schedule."""
    if optim.power != 1.0 and optim.schedule != "polynomial":
        yield Problem(
            f"schedule {optim.schedule} has no power", f"{where}.power", f"{where}.schedule=polynomial, or power=1.0"
        )
    given = [name for name in ("cooldown_steps", "cooldown_ratio") if getattr(optim, name) is not None]
    if optim.schedule == "wsd" and len(given) != 1:
        what = "neither is" if not given else "both are"
        yield Problem(
            f"wsd ends with cooldown_steps or cooldown_ratio, and {what} given",
            f"{where}.cooldown_steps",
            f"{where}.cooldown_ratio=0.1",
        )
    if optim.schedule != "wsd" and given:
        yield Problem(
            f"schedule {optim.schedule} has no cooldown",
            f"{where}.{given[0]}",
            f"{where}.schedule=wsd, or {given[0]}=null",
        )
    if optim.cooldown_ratio == 0:
        yield Problem(
            "a cooldown of no step", f"{where}.cooldown_ratio", f"{where}.schedule=constant, or a share above 0"
        )


def _weight_decay(optim: Optim, where: str) -> Iterator[Problem]:
    grows, end = optim.weight_decay_schedule != "constant", optim.weight_decay_end
    if grows != (end is not None):
        what = "where it ends is not told" if grows else "it is constant"
        yield Problem(
            f"weight decay is to change, but {what}",
            f"{where}.weight_decay_end" if grows else f"{where}.weight_decay_schedule",
            f"{where}.weight_decay_schedule=linear, or weight_decay_end=null",
        )
    if end is not None and end < optim.weight_decay:
        yield Problem(
            f"weight decay falls from {optim.weight_decay:g} to {end:g}; it can only grow",
            f"{where}.weight_decay_end",
            "a value of at least weight_decay",
        )


def _held_out(stage: TrainStage, where: str) -> Iterator[Problem]:
    held_out = stage.eval
    if held_out is not None:
        both = sorted(set(held_out.data) & set(stage.data))
        if both:
            yield Problem(
                f"{', '.join(both)} is trained on: what is evaluated on must be held out",
                f"{where}.eval.data",
                "name other data",
            )
        if held_out.max_samples is not None and held_out.generate > held_out.max_samples:
            yield Problem(
                f"{held_out.generate} answers of {held_out.max_samples} samples",
                f"{where}.eval.generate",
                "at most max_samples",
            )
    if stage.keep_best is not None and held_out is None:
        yield Problem(
            "keep_best needs evaluations during training",
            f"{where}.keep_best",
            f"'{where}.eval={{steps: 100, data: [NAME], max_samples: 256, generate: 0, max_new_tokens: 16}}'",
        )
    elif stage.keep_best == "exact_match" and held_out is not None and held_out.generate == 0:
        yield Problem(
            "keep_best=exact_match compares generated answers, and none are generated",
            f"{where}.eval.generate",
            f"{where}.eval.generate=64, or {where}.keep_best=loss",
        )
