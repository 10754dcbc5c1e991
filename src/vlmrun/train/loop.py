"""The training loop: batch, forward, loss, backward, step, log, save."""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from vlmrun import heartbeat, logs
from vlmrun.config.schema import TrainStage
from vlmrun.errors import LaunchError, VlmrunError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.loss import count
from vlmrun.train import dist, loss
from vlmrun.train.audit import Proof
from vlmrun.train.checkpoint.policy import Saver
from vlmrun.train.engine import Engine
from vlmrun.train.log import Row, Tracker

log = logs.get(__name__)

Batch = dict[str, Any]
_SHOWN = 20
# The loss scale begins at 2**16 and is halved each time, after one more by hysteresis: by then it has long been 1.
_MOST_OVERFLOWS = 25


@dataclass
class Plan:
    """All the loop needs besides the engine.

    Args:
        name: of the stage, for messages.
        batches: (step, this rank's micro batches), steps counting from 0.
        done: steps finished before this process began.
        rate: the schedule's factor, by steps finished.
        weight_decay: by steps finished; None: it stays.
        saver: writes checkpoints.
        evaluate: tries the model of so many finished steps on held-out data, if it is time; true when that made it the
            best one so far, which has to be kept.
        skipped: told of samples that were left out while loading.
    """

    name: str
    stage: TrainStage
    batches: Iterable[tuple[int, list[Batch]]]
    steps: int
    done: int
    epoch: Callable[[int], float]
    rate: Callable[[int], float]
    saver: Saver
    evaluate: Callable[[int], bool]
    skipped: Callable[[list[dict[str, Any]]], None]
    trackers: list[Tracker] = field(default_factory=list)
    weight_decay: Callable[[int], float] | None = None


def run(engine: Engine, plan: Plan) -> None:
    """Trains from `plan.done` to `plan.steps`.

    A model is evaluated before it is saved: a run that goes on from a checkpoint then knows its evaluation, or, where
    there was no time for one, makes it first.

    Raises:
        VlmrunError: when the loss is not finite, or a part does not do what its tuning says.
        LaunchError: after a signal, with a checkpoint saved.
    """
    stage = plan.stage
    seeing = stage.tune.tower != "freeze" or stage.tune.connector != "freeze"
    proof = Proof(engine.vlm, engine.finest, engine.watch) if plan.done < plan.steps else None
    overflows = 0
    if plan.done:
        plan.evaluate(plan.done)
    with _signals() as asked, _sealing(plan.saver), contextlib.closing(_closing(plan.batches)) as batches:
        began = asked_for = time.perf_counter()
        heartbeat.beat("data")
        for step, micro_batches in batches:
            waited = time.perf_counter() - asked_for
            heartbeat.beat("forward", step + 1)
            seed(stage.seed, step, dist.noise_rank())
            factor = plan.rate(step)
            decay = None if plan.weight_decay is None else plan.weight_decay(step)
            totals = _update(engine, plan, micro_batches, (factor, decay), asked)
            taught = totals.pictures if seeing else totals.supervised
            overflows = overflows + 1 if totals.overflow else 0
            if overflows == _MOST_OVERFLOWS:
                plan.saver.finish()
                raise _only_overflows(micro_batches)
            if proof is not None and proof.open and factor > 0 and taught > 0 and not totals.overflow:
                proof.conclude()
            now = time.perf_counter()
            _report(plan, step, micro_batches, totals, (now - began, waited))
            began = now
            _keep(plan, step + 1, totals)
            heartbeat.beat("data")
            asked_for = time.perf_counter()
    plan.saver.finish()
    if proof is not None and proof.open:
        log.warning("the tune proof could not be made: no update had a rate above zero and something to learn")


def _keep(plan: Plan, finished: int, totals: _Totals) -> None:
    """Names, evaluates and saves what it is time for."""
    if totals.named:
        plan.saver.finish()
    if totals.stop:
        # Whoever sent the signal may not wait for an evaluation: the run that goes on makes it.
        plan.saver.save(finished)
        plan.saver.finish()
        raise LaunchError(
            f"stopped at step {finished}; checkpoint saved; the same command resumes there", plan.name, reason="stopped"
        )
    is_best = plan.evaluate(finished)
    # The last step too: should the disk be too full for the weights, no step has to be repeated.
    due = finished % plan.stage.save_steps == 0 or finished == plan.steps
    if is_best or due or totals.save:
        plan.saver.save(finished)
    if totals.save:
        plan.saver.finish()
        log.info("step %d: checkpoint saved, as SIGUSR1 asked for", finished)


def seed(number: int, step: int, rank: int) -> None:
    """Seeds torch for a step, so that a resumed run draws what an undisturbed one would."""
    mixed = hashlib.sha256(f"{number}/{step}/{rank}".encode()).digest()
    number = int.from_bytes(mixed[:8], "big") >> 1
    if torch.cuda.is_initialized():
        torch.manual_seed(number)
    else:  # seeding devices that are not in use takes longer than the rest of our work in a step
        torch.default_generator.manual_seed(number)


@dataclass
class _Totals:
    """One update's sums over all ranks."""

    loss: float | None
    grad_norm: float
    lr: float
    supervised: int
    pictures: int  # samples that can teach every part: a picture and supervised tokens
    tokens: int
    samples: int
    empty: list[str]  # samples of micro batches without a supervised token
    stop: bool
    save: bool
    named: bool  # the checkpoint that was being synced and hashed is ready for its name, on all ranks
    overflow: bool
    loss_scale: float | None


def _update(
    engine: Engine, plan: Plan, micro_batches: list[Batch], pace: tuple[float, float | None], asked: _Asked
) -> _Totals:
    """Forward and backward of every micro batch, then the update.

    Args:
        pace: factor on the rates, and weight decay where it changes.
    """
    stage = plan.stage
    counts = [count(batch["labels"]) for batch in micro_batches]
    n_tokens = int(_sum({"tokens": sum(counts)})["tokens"]) if stage.loss == "token_mean" else sum(counts)
    window = loss.Window(stage.loss, counts, n_tokens, dist.data_world())
    values = []
    for batch, n_supervised in zip(micro_batches, counts, strict=True):
        heartbeat.beat("forward")
        value = window.add(engine.forward(batch), n_supervised)
        heartbeat.beat("backward")
        engine.backward(value)
        values.append(value.detach())
    heartbeat.beat("update")
    # One look at the device per update, not one per micro batch.
    finite = torch.stack(values).isfinite().tolist()
    bad = [batch for batch, good in zip(micro_batches, finite, strict=True) if not good]
    empty = [batch for batch, n in zip(micro_batches, counts, strict=True) if n == 0]
    sums = _sum(
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
    return _Totals(
        loss=sums["loss"] / sums["units"] if sums["units"] else None,
        grad_norm=norm or 0.0,
        lr=stage.optim.lr * pace[0],
        supervised=int(sums["supervised"]),
        pictures=int(sums["pictures"]),
        tokens=int(sums["tokens"]),
        samples=int(sums["samples"]),
        empty=_names(empty) if sums["empty"] else [],
        stop=sums["stop"] > 0,
        save=sums["save"] > 0,
        named=plan.saver.waits and not sums["works"],
        overflow=norm is None,
        loss_scale=scale,
    )


def _pictures(batch: Batch) -> int:
    """Samples of a micro batch that have both a picture and supervised tokens."""
    seeing = (batch["input_ids"] == IMAGE_TOKEN).any(dim=1)
    taught = (batch["labels"][:, 1:] != IGNORE).any(dim=1)
    return int((seeing & taught).sum())


def _report(plan: Plan, step: int, micro_batches: list[Batch], totals: _Totals, seconds: tuple[float, float]) -> None:
    """Tells the trackers, and whoever should know of samples that taught nothing.

    Args:
        seconds: of the whole step, and of waiting for its data.
    """
    row = Row(
        step=step + 1,
        epoch=plan.epoch(step + 1),
        loss=totals.loss,
        lr=totals.lr,
        grad_norm=totals.grad_norm,
        supervised_tokens=totals.supervised,
        tokens=totals.tokens,
        samples=totals.samples,
        seconds=seconds[0],
        wait_seconds=seconds[1],
        overflow=totals.overflow,
        loss_scale=totals.loss_scale,
    )
    if totals.overflow:
        told = "step %d: the gradients overflowed fp16 at loss scale %g; no update, the next ones are scaled less"
        log.info(told, row.step, row.loss_scale or 1.0)
    for batch in micro_batches:
        plan.skipped(batch["skipped"])
    if totals.empty:
        log.warning(
            "step %d: micro batches without supervised tokens teach nothing: %s", row.step, _shown(totals.empty)
        )
    for index, tracker in enumerate(plan.trackers):
        # The first tracker is metrics.jsonl and the last one progress; only what stands between is thinned.
        outer = index in (0, len(plan.trackers) - 1)
        if outer or row.step % plan.stage.log_steps == 0 or row.step == plan.steps:
            tracker.track(row)


def _sum(values: dict[str, float]) -> dict[str, float]:
    """Sums over ranks, in one collective. Ranks that read the same samples count once."""
    if dist.world() == 1:
        return values
    summed = dist.all_reduce(dist.on_device(torch.tensor(list(values.values()), dtype=torch.float64)))
    summed /= dist.replicas()
    return dict(zip(values, summed.tolist(), strict=True))


def _names(batches: list[Batch]) -> list[str]:
    """Sample ids of every rank's batches. A collective."""
    mine = [name for batch in batches for name in batch["ids"]]
    return [name for part in dist.gather_objects(mine) for name in part]


def _not_finite(what: str, mine: list[Batch]) -> VlmrunError:
    """The same error on every rank, with the samples of all."""
    return VlmrunError(
        f"the {what} is not finite: training stops before it is saved",
        f"samples: {_shown(_names(mine))}",
        "look at these records; if they are sound, lower the learning rate or set optim.max_grad_norm; "
        "the last checkpoint is from before",
    )


def _only_overflows(mine: list[Batch]) -> VlmrunError:
    return VlmrunError(
        f"{_MOST_OVERFLOWS} updates in a row overflowed fp16: nothing is learnt",
        f"samples: {_shown(_names(mine))}",
        "use hardware.precision=bf16 where the GPU has it, fp32 otherwise, or a lower learning rate",
    )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class _Asked:
    """What signals asked for: to stop, to save and go on."""

    def __init__(self) -> None:
        self.stop = False
        self._saves = self._seen = 0

    def note_save(self) -> None:
        """Takes in a wish to save."""
        self._saves += 1

    def new_saves(self) -> int:
        """Wishes to save since this was last asked."""
        new = self._saves - self._seen
        self._seen += new
        return new


@contextlib.contextmanager
def _signals() -> Iterator[_Asked]:
    """Notes SIGUSR1 and a first SIGINT or SIGTERM; a second one of these acts at once."""
    asked = _Asked()
    kept: dict[int, Any] = {}

    def stop(_number: int, _frame: object) -> None:
        asked.stop = True
        for known, handler in kept.items():
            if known != signal.SIGUSR1:
                signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        kept[number] = signal.signal(number, stop)
    kept[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda _number, _frame: asked.note_save())
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _sealing(saver: Saver) -> Iterator[None]:
    """Names what was written before an error. Of several ranks the one that raises may be the only one: it cannot."""
    try:
        yield
    except VlmrunError:
        if dist.world() == 1:
            saver.finish()
        raise


def _closing(batches: Iterable[tuple[int, list[Batch]]]) -> Any:
    """The batches as a generator, so that leaving the loop ends the loader's processes."""
    yield from batches
