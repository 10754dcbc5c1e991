"""Rules about how a training went."""

from __future__ import annotations

from collections.abc import Iterator

from vlmrun.checks import rates
from vlmrun.doctor.evidence import Case, Training
from vlmrun.doctor.finding import Finding, Rule

# A loss below this is small: what it still does says little.
_SMALL_LOSS = 0.3
_LEAST_UPDATES = 10  # fewer say nothing about a curve
_FEW_UPDATES, _VERY_FEW = 200, 50
_FLAT = 0.95  # of the first loss
_FALLS = 0.92
_RISES, _RISES_BY = 1.5, 0.2
_MOST = 0.5  # of the updates
_SKIPPED = 0.05
_CUT = 0.1


def _rate(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        found = rates.far(one.stage, one.job.model)
        if found is not None:
            fix = f"stage.{one.name}.optim.lr={found.usual:g}, or the preset itself: stage=[{found.preset}]"
            yield Finding(one.name, found.text, fix, 0.9)


def _gradients(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        n = len(one.rows)
        overflowed = sum(bool(row.get("overflow")) for row in one.rows)
        zero = sum(row.get("grad_norm") == 0 and not row.get("overflow") for row in one.rows)
        if n and overflowed > _MOST * n:
            what = f"{overflowed} of {n} updates overflowed fp16 and changed nothing"
            yield Finding(one.name, what, "hardware.precision=bf16 where the GPU has it, otherwise fp32", 0.95)
        if n and zero > _MOST * n:
            what = f"the gradients were zero in {zero} of {n} updates"
            fix = f"vlmrun data show ... --stage {one.name}: which tokens are supervised; and stage.{one.name}.tune"
            yield Finding(one.name, what, fix, 0.95)


def _flat(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        first, last = one.loss(0.0, 0.2), one.loss(0.8, 1.0)
        if first is None or last is None or len(one.losses) < _LEAST_UPDATES:
            continue
        if first > _SMALL_LOSS and _FLAT * first < last < first * _RISES:
            what = f"the loss did not fall: {first:.3g} in the first fifth of the updates, {last:.3g} in the last"
            yield Finding(one.name, what, _overfit(one), 0.7)


def _diverged(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        parts = [one.loss(n / 10, (n + 1) / 10) for n in range(10)]
        losses = [loss for loss in parts if loss is not None]
        if len(one.losses) >= _LEAST_UPDATES and losses[-1] > max(_RISES * min(losses), min(losses) + _RISES_BY):
            what = f"the loss rose again: {min(losses):.3g} at its lowest, {losses[-1]:.3g} at the end"
            fix = f"a lower rate: stage.{one.name}.optim.lr={one.stage.optim.lr / 3:.2g}"
            yield Finding(one.name, what, fix, 0.8)


def _falling(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        before, last = one.loss(0.6, 0.8), one.loss(0.8, 1.0)
        if before is None or last is None or len(one.losses) < _LEAST_UPDATES:
            continue
        if last > _SMALL_LOSS and last < _FALLS * before:
            what = f"the loss was still falling at the end: {before:.3g}, then {last:.3g} in the last fifth"
            yield Finding(one.name, what, _longer(one), 0.6)


def _few(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        n, last = len(one.rows), one.loss(0.8, 1.0)
        if 0 < n < _FEW_UPDATES and last is not None and last > _SMALL_LOSS:
            what = f"only {n} updates were made, and the loss ended at {last:.3g}"
            yield Finding(one.name, what, _longer(one), 0.65 if n < _VERY_FEW else 0.4)


def _supervised(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        tokens, samples = (sum(row.get(key, 0) for row in one.rows) for key in ("supervised_tokens", "samples"))
        if samples and tokens < samples:
            what = f"{tokens:,} tokens of {samples:,} samples were supervised: less than one in each"
            fix = f"vlmrun data show ... --stage {one.name}: is the answer cut off (model.max_length), or masked?"
            yield Finding(one.name, what, fix, 0.85)


def _skipped(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        n, used = one.summary.get("skipped", 0), one.summary.get("samples", 0)
        if n > _SKIPPED * max(used, 1):
            what = f"{n:,} records could not be used, beside {used:,} samples that were"
            yield Finding(one.name, what, f"vlmrun data ledger {one.name} --lost says which and why", 0.5)


def _truncated(case: Case) -> Iterator[Finding]:
    for one in case.trainings:
        cut, used = one.cut
        if cut > _CUT * max(used, 1):
            what = f"{cut:,} of {used:,} records were cut off at model.max_length, where their answers are"
            yield Finding(one.name, what, f"a larger model.max_length; vlmrun data ledger {one.name} --lost", 0.6)


def _by_heart(case: Case) -> Iterator[Finding]:
    """Held-out loss rises while the training loss falls."""
    for one in case.trainings:
        tried = [row["loss"] for row in one.held_out if isinstance(row.get("loss"), int | float)]
        first, last = one.loss(0.0, 0.2), one.loss(0.8, 1.0)
        if len(tried) > 1 and first is not None and last is not None and last < first and tried[-1] > 1.1 * min(tried):
            what = f"the held-out loss rose from {min(tried):.3g} to {tried[-1]:.3g} while the training loss fell"
            yield Finding(one.name, what, f"more data, fewer epochs, or stage.{one.name}.keep_best=loss", 0.6)


def _longer(one: Training) -> str:
    if one.stage.epochs is None:
        return f"more updates: stage.{one.name}.max_steps={2 * (one.stage.max_steps or 1)}"
    return f"more passes: stage.{one.name}.epochs={2 * one.stage.epochs:g}, or a smaller global_batch"


def _overfit(one: Training) -> str:
    data = ",".join(one.stage.data)
    return f"eight samples by heart first: 'stage=[overfit]' 'stage.overfit.data=[{data}]'; then rates 3 times up, down"


RULES = (
    Rule("rate", "The learning rate is far from that of the preset for this tuning and size of model.", _rate),
    Rule("gradients", "Most updates had no gradient, or overflowed in fp16.", _gradients),
    Rule("flat-loss", "The loss did not fall.", _flat),
    Rule("rising-loss", "The loss rose again after it had fallen.", _diverged),
    Rule("falling-loss", "The loss was still falling when training ended.", _falling),
    Rule("few-updates", "Fewer than 200 updates were made, and the loss is not low.", _few),
    Rule("few-supervised", "Less than one token of a sample was supervised, on average.", _supervised),
    Rule("lost-records", "More than one record in twenty could not be used.", _skipped),
    Rule("cut-records", "More than one record in ten was cut off at model.max_length.", _truncated),
    Rule("by-heart", "The held-out loss rose while the training loss fell.", _by_heart),
)
