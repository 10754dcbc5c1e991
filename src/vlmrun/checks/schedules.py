"""Rules about the schedule of rates and weight decay, the length of a training, and another loader's order."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Optim, RunConfig, TrainStage
from vlmrun.errors import Problem

UNFIT = "a shorter warm-up or cooldown, or more steps"


def _schedule(stage: TrainStage, where: str) -> Iterator[Problem]:
    optim = stage.optim
    if (optim.warmup_ratio is None) == (optim.warmup_steps is None):
        given = "neither is" if optim.warmup_ratio is None else "both are"
        yield Problem(
            f"the warm-up is given by warmup_ratio or by warmup_steps, and {given} given",
            f"{where}.optim.warmup_ratio",
            f"{where}.optim.warmup_ratio=null for steps, {where}.optim.warmup_steps=null for a share",
        )
    elif optim.warmup_ratio == 1.0:
        yield Problem(
            "the whole schedule is warm-up", f"{where}.optim.warmup_ratio", "a share of the steps, such as 0.03"
        )
    elif stage.max_steps is not None and derived.warmup_steps(optim, stage.max_steps) >= stage.max_steps:
        given_as = "warmup_ratio" if optim.warmup_steps is None else "warmup_steps"
        yield Problem(
            f"all {stage.max_steps} steps are warm-up, and the first has rate 0",
            f"{where}.optim.{given_as}",
            f"raise max_steps or lower {given_as}",
        )
    elif stage.max_steps is not None and not any(_warmup(optim, where)) and not any(_shape(optim, where)):
        yield from unfit(optim, stage.max_steps, where)
    if stage.epochs is None and stage.max_steps is None:
        yield Problem("neither epochs nor max_steps says how long to train", f"{where}.epochs", f"{where}.epochs=1.0")
    if stage.epochs is None and stage.packing is not None:
        yield Problem("packing lays out whole passes over the data", f"{where}.epochs", f"{where}.epochs=1.0")
    falls_to = [name for name in ("min_lr_ratio", "min_lr", "decay_steps", "decay_ratio") if getattr(optim, name)]
    if falls_to and (optim.schedule == "constant" or stage.compat.offload_schedule):
        what = "schedule constant" if optim.schedule == "constant" else "compat.offload_schedule"
        neutral = "0.0" if falls_to[0] == "min_lr_ratio" else "null"
        yield Problem(
            f"{what} never falls to a lowest rate", f"{where}.optim.{falls_to[0]}", f"{falls_to[0]}={neutral}"
        )
    yield from schedule(optim, f"{where}.optim")


def unfit(optim: Optim, steps: int, where: str) -> Iterator[Problem]:
    """A value of a schedule that does not fit a number of updates."""
    found = derived.unfit(optim, steps)
    if found is not None:
        yield Problem(found[1], f"{where}.optim.{found[0]}", UNFIT)


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
            "the lowest rate is given as a rate and as a share",
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
    if optim.decay_ratio is not None and optim.warmup_ratio is not None and optim.warmup_ratio >= optim.decay_ratio:
        yield Problem(
            f"the warm-up takes {optim.warmup_ratio:g} of all steps, and the decay ends after {optim.decay_ratio:g}",
            f"{place}.decay_ratio",
            "a larger decay_ratio, or a smaller warmup_ratio",
        )
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
    if optim.schedule == "wsd" and len(given) == 2:
        yield Problem(
            "wsd ends with cooldown_steps or cooldown_ratio, and both are given",
            f"{where}.cooldown_steps",
            f"{where}.cooldown_steps=null",
        )
    if optim.schedule == "wsd" and optim.decay_ratio is not None:
        yield Problem(
            "the part of wsd in which the rate falls is its cooldown",
            f"{where}.decay_ratio",
            f"{where}.decay_ratio=null {where}.cooldown_ratio={optim.decay_ratio:g}",
        )
    if optim.decay_ratio is not None and optim.decay_steps is not None:
        yield Problem(
            "the end of the decay is given in updates and as a share", f"{where}.decay_ratio", "one of the two is null"
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
        what = "where it ends is not given" if grows else "it is constant"
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


def _energon(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
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


_TRAIN = (TrainStage,)
RULES = (
    Rule("schedule", "The warm-up is given once and is shorter than the schedule, a lowest rate belongs to a schedule "
         "that falls, and every value belongs to the schedule that is chosen.",
         ("stage.*.optim", "stage.*.max_steps", "stage.*.epochs"), _schedule, of=_TRAIN, alone=True),
    Rule("energon-order", "The order of megatron-energon is that of one data set of its own, in whole micro batches.",
         ("stage.*.order", "stage.*.data", "stage.*.global_batch"), _energon, of=_TRAIN),
)  # fmt: skip
