"""Values that follow from others, each computed in one place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from vlmrun.config import marks
from vlmrun.config.marks import Parent, Source
from vlmrun.config.schema import (
    AverageStage,
    DataConfig,
    Every,
    HardwareConfig,
    Lora,
    ModelConfig,
    Optim,
    Reading,
    RunConfig,
    SearchStage,
    Slices,
    StageNode,
    Target,
    TrainStage,
)

# Source: arXiv:2404.06395 (MiniCPM), section 4.2: a tenth of all steps is enough for the decay of WSD.
_COOLDOWN = 0.1
_ROUNDED = 1e-9  # what a quotient may lack to a whole number
SHARDS = frozenset({"wds", "energon"})  # formats that are folders of tar files


def ranks(hardware: HardwareConfig) -> int:
    """Number of worker processes."""
    return hardware.nodes * hardware.ranks_per_node


def replicas(hardware: HardwareConfig) -> int:
    """Ranks that read the same samples: they share the LLM's layers, or its sequences."""
    return hardware.tensor_parallel * hardware.sequence_parallel


def data_ranks(hardware: HardwareConfig) -> int:
    """Ranks, or groups of them, that read samples of their own."""
    return hardware.data_ranks


def accumulation(stage: TrainStage, hardware: HardwareConfig) -> int:
    """Forward passes per rank and update: global batch / (micro batch x data ranks), which must divide."""
    steps, rest = divmod(stage.global_batch, stage.micro_batch * data_ranks(hardware))
    assert rest == 0, "checked before any job is written"
    return steps


def nearest_batches(stage: TrainStage, hardware: HardwareConfig) -> list[int]:
    """Global batches next to the asked one that this micro batch and number of ranks can make."""
    unit = stage.micro_batch * data_ranks(hardware)
    below = stage.global_batch // unit * unit
    return [batch for batch in (below, below + unit) if batch > 0]


def warmup_steps(optim: Optim, steps: int) -> int:
    """Updates of the warm-up: as given, or a share of all steps, rounded up as transformers does."""
    if optim.warmup_steps is not None:
        return optim.warmup_steps
    assert optim.warmup_ratio is not None, "checked: one of the two is given"
    return math.ceil(optim.warmup_ratio * steps)


def first_of(counts: Sequence[int], most: int | None) -> list[int]:
    """Of sources with these counts, how many of each are among the first `most` of all; None: all."""
    if most is None:
        return list(counts)
    before = [0, *itertools.accumulate(counts)]
    return [max(0, min(count, most - start)) for count, start in zip(counts, before, strict=False)]


def steps(stage: TrainStage, n_samples: int) -> int:
    """Updates of a stage on N samples an epoch, without packing; 0 where they fill no batch."""
    if stage.epochs is None:
        return (stage.max_steps or 0) if n_samples else 0
    available = int(n_samples * stage.epochs) // stage.global_batch
    return available if stage.max_steps is None else min(available, stage.max_steps)


def cooldown_steps(optim: Optim, end: int) -> int:
    """Updates of wsd's last part: as given, or a share of all up to its end, rounded up."""
    if optim.cooldown_steps is not None:
        return optim.cooldown_steps
    share = _COOLDOWN if optim.cooldown_ratio is None else optim.cooldown_ratio
    return max(1, math.ceil(share * end))


def decay_end(optim: Optim, steps: int) -> int:
    """Updates until the lowest rate, the warm-up included: as given, a share of all, or all."""
    if optim.decay_ratio is not None:
        return max(1, math.ceil(optim.decay_ratio * steps))
    return optim.decay_steps or steps


def unfit(optim: Optim, steps: int) -> tuple[str, str] | None:
    """A value of a schedule that does not fit this many updates: its name, and why. None: all do."""
    warmup, end = warmup_steps(optim, steps), decay_end(optim, steps)
    if warmup >= end and end < steps:
        key = "decay_steps" if optim.decay_ratio is None else "decay_ratio"
        return key, f"the warm-up takes {warmup} of {steps} steps, and the decay ends after {end}"
    if optim.schedule == "wsd":
        key, rounding = ("cooldown_ratio", 1) if optim.cooldown_steps is None else ("cooldown_steps", 0)
        cooldown, left = cooldown_steps(optim, end), end - warmup
        if cooldown > left + rounding:
            return key, f"the cooldown takes {cooldown} steps, and the warm-up leaves {left} of {end}"
    return None


def is_due(every: Every, step: int, steps: int, epoch: Callable[[int], float]) -> bool:
    """Whether something happens after an update that is asked for every N updates, share of all updates, or epoch.

    Args:
        step: updates made.
        steps: all of them.
        epoch: passes over the data that are finished after an update.
    """
    if isinstance(every, int):
        return step % every == 0

    def reached(at: int) -> int:
        return math.floor((epoch(at) if isinstance(every, str) else at / (every * steps)) + _ROUNDED)

    return reached(step) > reached(step - 1)


def times(every: Every, steps: int, epochs: float) -> int:
    """How many times something happens that is asked for so, and also happens after the last of all updates."""
    if isinstance(every, int):
        return -(-steps // every)
    return math.ceil((epochs if isinstance(every, str) else 1.0 / every) - _ROUNDED)


def recomputed_together(stage: TrainStage) -> int:
    """Blocks of the LLM that keep one input under gradient checkpointing; 0 without."""
    return int(stage.gradient_checkpointing)


def tower_lora(stage: TrainStage) -> Lora | None:
    """The adapters' shape in the tower."""
    return (stage.tower_lora or stage.lora) if stage.tune.tower == "lora" else None


def in_shards(data: DataConfig) -> bool:
    """Whether samples lie in tar shards, with their images."""
    return data.format in SHARDS


def sources(stage: StageNode) -> list[str]:
    """Names of all data a stage reads: what it trains on or asks, and what it is evaluated on meanwhile."""
    return list(dict.fromkeys(name for _, name in marks.named(stage, Source)))


def files_read(run: RunConfig) -> dict[str, DataConfig]:
    """Data whose files must be there: what the stages read that are to be run, and no stage of the run makes."""
    asked = [stage for name, stage in run.stage.items() if isinstance(stage, Reading) and name in (run.only or [name])]
    used = {source for stage in asked for source in sources(stage)}
    return {name: data for name, data in run.data.items() if name in used and data.prepare is None}


def template(stage: Reading, model: ModelConfig) -> str:
    """The stage's template, or the model's."""
    return stage.template or model.template


def image_background(stage: TrainStage) -> str | None:
    """The color behind transparent images; None: images are seen as upstream's code sees them."""
    return None if stage.compat.images == "upstream" else stage.image_background


def slices(model: ModelConfig) -> Slices | None:
    """How the model's images are cut into slices, if they are."""
    return model.tiles if isinstance(model.tiles, Slices) else None


def parent_names(stage: StageNode) -> list[str]:
    """What a stage refers to: names of stages or paths of artifacts, in order."""
    return [reference for _, reference in marks.named(stage, Parent)]


def average_weights(stage: AverageStage) -> list[float]:
    """One weight for each model: as given, fading towards older ones, or equal where the method takes none."""
    n = len(stage.models)
    if stage.ema is not None:
        fading = [stage.ema ** (n - 1 - place) * (1 - stage.ema) for place in range(n)]
        return [stage.ema ** (n - 1), *fading[1:]]
    return list(stage.weights) if stage.weights is not None else [1.0 / n] * n


def points(stage: SearchStage) -> list[AverageStage]:
    """The averages that a search tries: every combination of its weights and its grid's values, in order.

    Raises:
        pydantic.ValidationError: when a value of the grid is none that the method takes.
    """
    asked = stage.weights or _simplex(len(stage.models), stage.divisions or 1)
    shared = {name: getattr(stage, name) for name in ("models", "rules", "base_model", "dtype")}
    found = []
    for values in itertools.product(*stage.grid.values()):
        changed = {**stage.method.model_dump(), **dict(zip(stage.grid, values, strict=True))}
        method = type(stage.method).model_validate(changed)
        found += [AverageStage(kind="average", weights=w, ema=None, method=method, **shared) for w in asked]
    return found


def _simplex(n: int, divisions: int) -> list[list[float]]:
    """All weights of n models in whole multiples of 1/divisions that sum to 1."""

    def parts(n: int, rest: int) -> list[list[int]]:
        return [[rest]] if n == 1 else [[k, *more] for k in range(rest, -1, -1) for more in parts(n - 1, rest - k)]

    return [[part / divisions for part in row] for row in parts(n, divisions)]


def shares(weights: Sequence[float], method: Any) -> list[float]:
    """Weights as they are used: divided by their sum where the method says so."""
    total = sum(weights) if getattr(method, "sum", "any") == "normalize" else 1.0
    return [weight / total for weight in weights]


def connector_weights(connector: Target) -> tuple[Target, str | None]:
    """A connector's target as its class takes it, and the file its weights come from, which every option accepts."""
    arguments = connector.arguments
    weights = arguments.pop("weights", None)
    return Target.model_validate({"_target_": connector.target, **arguments}), weights
