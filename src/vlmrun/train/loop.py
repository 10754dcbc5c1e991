"""The training loop: batch, forward, loss, backward, step, log, save."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from vlmrun import heartbeat, logs
from vlmrun.config import derived
from vlmrun.errors import LaunchError, VlmrunError
from vlmrun.train import dist
from vlmrun.train.audit import Proof
from vlmrun.train.checkpoint.policy import Saver
from vlmrun.train.engine.base import Engine
from vlmrun.train.log import Row, leading
from vlmrun.train.plan import Batch, Plan
from vlmrun.train.signals import noting_signals
from vlmrun.train.update import MOST_OVERFLOWS, Totals, only_overflows, shown, update

log = logs.get(__name__)


def run(engine: Engine, plan: Plan) -> int:
    """Trains from `plan.done` to `plan.steps`, or until it is over before that; returns the steps that are finished.

    A model is evaluated before it is saved: a run that resumes from a checkpoint then knows its evaluation, or, where
    there was no time for one, makes it first.

    Raises:
        VlmrunError: when the loss is not finite, or a part does not do what its tuning says.
        LaunchError: after a signal, with a checkpoint saved.
    """
    stage = plan.stage
    seeing = stage.tune.tower != "freeze" or stage.tune.connector != "freeze"
    proof = Proof(engine.vlm, engine.finest, engine.watch) if plan.done < plan.steps else None
    overflows = 0
    plan.evaluate(plan.done, plan.loss)
    finished = plan.done
    if finished and plan.is_over(finished, plan.loss):
        return finished
    with noting_signals() as asked, _sealing(plan.saver), contextlib.closing(_closing(plan.batches)) as batches:
        began = asked_for = time.perf_counter()
        heartbeat.beat("data")
        for step, micro_batches in batches:
            waited = time.perf_counter() - asked_for
            heartbeat.beat("forward", step + 1)
            seed(stage.seed, step, dist.noise_rank())
            factor = plan.rate(step)
            decay = None if plan.weight_decay is None else plan.weight_decay(step)
            totals = update(engine, plan, micro_batches, (factor, decay), asked)
            taught = totals.pictures if seeing else totals.supervised
            overflows = overflows + 1 if totals.overflow else 0
            if overflows == MOST_OVERFLOWS:
                plan.saver.finish()
                raise only_overflows(micro_batches)
            if proof is not None and proof.open and factor > 0 and taught > 0 and not totals.overflow:
                proof.conclude()
            now = time.perf_counter()
            _report(plan, step, micro_batches, totals, (now - began, waited))
            began = now
            finished = step + 1
            if not totals.overflow:
                plan.updated(finished)
            _keep(plan, finished, totals)
            if plan.is_over(finished, totals.loss):
                break
            heartbeat.beat("data")
            asked_for = time.perf_counter()
    plan.saver.finish()
    if proof is not None and proof.open:
        log.warning("the tune proof could not be made: no update had a rate above zero and something to learn")
    return finished


def _keep(plan: Plan, finished: int, totals: Totals) -> None:
    """Names, evaluates and saves what it is time for."""
    if totals.named:
        plan.saver.finish()
    if totals.stop:
        # What sent the signal may not wait for an evaluation: the resumed run makes it.
        plan.saver.save(finished)
        plan.saver.finish()
        raise LaunchError(
            f"stopped at step {finished}; checkpoint saved; the same command resumes there", plan.name, reason="stopped"
        )
    is_best = plan.evaluate(finished, totals.loss)
    # The last step too: should the disk be too full for the weights, no step has to be repeated.
    due = derived.is_due(plan.stage.save_steps, finished, plan.steps, plan.epoch)
    if finished == plan.steps or plan.is_over(finished, totals.loss) or is_best or due or totals.save:
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


def _report(plan: Plan, step: int, micro_batches: list[Batch], totals: Totals, seconds: tuple[float, float]) -> None:
    """Passes the numbers to the trackers, and reports samples that taught nothing.

    Args:
        seconds: of the whole step, and of waiting for its data.
    """
    row = Row(
        step=step + 1,
        epoch=plan.epoch(step + 1),
        loss=totals.loss,
        lr=leading(totals.lrs),
        lrs=totals.lrs,
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
        message = "step %d: the gradients overflowed fp16 at loss scale %g; no update, the next ones are scaled less"
        log.info(message, row.step, row.loss_scale or 1.0)
    for batch, losses in zip(micro_batches, totals.losses, strict=True):
        plan.skipped(batch["skipped"])
        plan.used(row.step, batch.get("uses", []), losses)
    if totals.empty:
        log.warning("step %d: micro batches without supervised tokens teach nothing: %s", row.step, shown(totals.empty))
    heartbeat.beat("track")  # a service may take longer than a step
    for tracker in plan.trackers:
        tracker.track(row)


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
