"""One update: forward and backward of every micro batch, the sums over all ranks, and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from vlmrun import heartbeat
from vlmrun.errors import VlmrunError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.loss import count
from vlmrun.train import dist, loss
from vlmrun.train.engine.base import Engine
from vlmrun.train.plan import Batch, Plan
from vlmrun.train.signals import Asked

_SHOWN = 20
# The loss scale begins at 2**16 and is halved each time, after one more by hysteresis: by then it has long been 1.
MOST_OVERFLOWS = 25


@dataclass
class Totals:
    """One update's sums over all ranks."""

    loss: float | None
    grad_norm: float
    lrs: dict[str, float]  # of every part that trains
    supervised: int
    pictures: int  # samples that can teach every part: an image and supervised tokens
    tokens: int
    samples: int
    empty: list[str]  # samples of micro batches without a supervised token
    stop: bool
    save: bool
    named: bool  # the checkpoint that was being synced and hashed is ready for its name, on all ranks
    overflow: bool
    loss_scale: float | None
    losses: list[torch.Tensor | None]  # of each of this rank's micro batches, where the head listens


# Factor on the learning rates, and the weight decay where it changes.
Pace = tuple[float, float | None]


def update(engine: Engine, plan: Plan, micro_batches: list[Batch], pace: Pace, asked: Asked) -> Totals:
    """Forward and backward of every micro batch, then the update."""
    stage = plan.stage
    counts = [count(batch["labels"]) for batch in micro_batches]
    n_tokens = int(sum_over_ranks({"tokens": sum(counts)})["tokens"]) if stage.loss == "token_mean" else sum(counts)
    window = loss.Window(stage.loss, counts, n_tokens, dist.data_world())
    values: list[torch.Tensor] = []
    losses: list[torch.Tensor | None] = []
    head: Any = engine.vlm.head
    for batch, n_supervised in zip(micro_batches, counts, strict=True):
        heartbeat.beat("forward")
        value = window.add(engine.forward(batch), n_supervised)
        losses.append(head.losses)
        heartbeat.beat("backward")
        engine.backward(value)
        values.append(value.detach())
    heartbeat.beat("update")
    # One look at the device per update, not one per micro batch.
    finite = torch.stack(values).isfinite().tolist()
    bad = [batch for batch, good in zip(micro_batches, finite, strict=True) if not good]
    empty = [batch for batch, n in zip(micro_batches, counts, strict=True) if n == 0]
    sums = sum_over_ranks(
        {
            "loss": float(window.total),
            "units": window.n_units,
            "supervised": sum(counts),
            "pictures": sum(_pictures(batch) for batch in micro_batches),
            "tokens": sum(int(batch["attention_mask"].sum()) for batch in micro_batches),
            "samples": sum(len(batch["ids"]) for batch in micro_batches),
            "bad": len(bad),
            "empty": len(empty),
            "stop": asked.stop,
            "save": asked.new_saves(),
            "works": plan.saver.works,
        }
    )
    if sums["bad"]:
        plan.saver.finish()
        raise _not_finite("loss", bad)
    scale = engine.loss_scale()  # of this update; a step changes it
    norm = engine.step(*pace)
    if norm is not None and not math.isfinite(norm):
        plan.saver.finish()
        raise _not_finite("gradient norm", micro_batches)
    return Totals(
        loss=sums["loss"] / sums["units"] if sums["units"] else None,
        grad_norm=norm or 0.0,
        lrs=engine.rates(),
        supervised=int(sums["supervised"]),
        pictures=int(sums["pictures"]),
        tokens=int(sums["tokens"]),
        samples=int(sums["samples"]),
        empty=names_of(empty) if sums["empty"] else [],
        stop=sums["stop"] > 0,
        save=sums["save"] > 0,
        named=plan.saver.waits and not sums["works"],
        overflow=norm is None,
        loss_scale=scale,
        losses=losses,
    )


def _pictures(batch: Batch) -> int:
    """Samples of a micro batch that have both an image and supervised tokens."""
    seeing = (batch["input_ids"] == IMAGE_TOKEN).any(dim=1)
    taught = (batch["labels"][:, 1:] != IGNORE).any(dim=1)
    return int((seeing & taught).sum())


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Sums over ranks, in one collective. Ranks that read the same samples count once."""
    if dist.world() == 1:
        return values
    summed = dist.all_reduce(dist.on_device(torch.tensor(list(values.values()), dtype=torch.float64)))
    summed /= dist.replicas()
    return dict(zip(values, summed.tolist(), strict=True))


def names_of(batches: list[Batch]) -> list[str]:
    """Sample ids of every rank's batches. A collective."""
    mine = [name for batch in batches for name in batch["ids"]]
    return [name for part in dist.gather_objects(mine) for name in part]


def _not_finite(what: str, mine: list[Batch]) -> VlmrunError:
    """The same error on every rank, with the samples of all."""
    return VlmrunError(
        f"the {what} is not finite: training stops before it is saved",
        f"samples: {shown(names_of(mine))}",
        "look at these records; if they are sound, lower the learning rate or set optim.max_grad_norm; "
        "the last checkpoint is from before",
    )


def only_overflows(mine: list[Batch]) -> VlmrunError:
    return VlmrunError(
        f"{MOST_OVERFLOWS} updates in a row overflowed fp16: nothing is trained",
        f"samples: {shown(names_of(mine))}",
        "use hardware.precision=bf16 where the GPU has it, fp32 otherwise, or a lower learning rate",
    )


def shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
