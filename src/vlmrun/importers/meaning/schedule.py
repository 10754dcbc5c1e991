"""Length, warm-up and shape of the schedule, as transformers' Trainer takes them."""

from __future__ import annotations

import json
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers.meaning.draft import Draft

_SHAPES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "polynomial": "polynomial",
    "cosine_with_min_lr": "cosine",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "wsd",
}
# Arguments of a shape (--lr_scheduler_kwargs) -> keys below stage.optim.
_ARGUMENTS = {
    "polynomial": {"lr_end": "min_lr", "power": "power"},
    "cosine_with_min_lr": {"min_lr": "min_lr", "min_lr_rate": "min_lr_ratio"},
    "warmup_stable_decay": {"num_decay_steps": "cooldown_steps", "min_lr_ratio": "min_lr_ratio",
                            "decay_type": "cooldown_shape"},
}  # fmt: skip
_COOLDOWNS = {"cosine": "cosine", "linear": "linear", "1-sqrt": "one_minus_sqrt"}
_STAYS_COSINE = "there is no such schedule here"


def schedule(draft: Draft) -> None:
    """Everything but the length."""
    name = draft.text("lr_scheduler_type") or "linear"
    given = _given(draft)
    why = _misfit(draft, name, given)
    if why is None:
        draft.set("stage.optim.schedule", _SHAPES[name], "lr_scheduler_type")
        _arguments(draft, name, given)
    else:
        draft.differ("lr_scheduler_type", "stage.optim.schedule", "cosine", why)
        draft.settle("lr_scheduler_kwargs", "unsupported", "arguments of a schedule that is not there")
    _warmup(draft, name)
    betas = [draft.number_of("adam_beta1"), draft.number_of("adam_beta2")]
    draft.set("stage.optim.betas", betas, "adam_beta1", "adam_beta2")


def _misfit(draft: Draft, name: str, given: dict[str, Any]) -> str | None:
    """Why a schedule is another one here."""
    if name not in _SHAPES:
        return _STAYS_COSINE
    if name == "inverse_sqrt" and not (draft.number_of("warmup_steps") or draft.number_of("warmup_ratio")):
        return "without a warm-up upstream counts from update 10,000"
    if name == "warmup_stable_decay" and "num_decay_steps" not in given:
        return "--lr_scheduler_kwargs does not say how many updates the decay takes"
    return None


def _given(draft: Draft) -> dict[str, Any]:
    text = draft.text("lr_scheduler_kwargs") if "lr_scheduler_kwargs" in draft.given else None
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    what = f"--lr_scheduler_kwargs is a JSON object, not {text!r}"
    draft.problems.append(Problem(what, draft.where("lr_scheduler_kwargs"), "correct the script"))
    return {}


def _arguments(draft: Draft, name: str, given: dict[str, Any]) -> None:
    keys = _ARGUMENTS.get(name, {})
    values = {"lr_end": 1e-7, "power": 1.0} | given if name == "polynomial" else given
    for argument, value in values.items():
        key = keys.get(argument)
        if key == "cooldown_shape":
            value = _COOLDOWNS.get(str(value))
        if key is not None and value is not None:
            note = f"lr_scheduler_kwargs {argument}" if argument in given else f"{argument} upstream"
            draft.set(f"stage.optim.{key}", value, "lr_scheduler_kwargs", note=note)
        else:
            draft.settle("lr_scheduler_kwargs", "unsupported", f"{argument} is left out")
    if "stage.optim.min_lr" in draft.settings:
        draft.set("stage.optim.min_lr_ratio", 0.0, note="the lowest rate is named")


def _warmup(draft: Draft, name: str) -> None:
    steps, ratio = draft.number_of("warmup_steps") or 0.0, draft.number_of("warmup_ratio")
    if name == "constant":
        draft.set(
            "stage.optim.warmup_ratio", 0.0, "warmup_ratio", "warmup_steps", note="constant has no warm-up upstream"
        )
    elif 0.0 < steps < 1.0:  # a share, for transformers 5, which has no warmup_ratio
        draft.set("stage.optim.warmup_ratio", steps, "warmup_steps", note="of all updates")
        draft.settle("warmup_ratio", "no effect", "warmup_steps takes its place")
    elif steps:
        draft.set("stage.optim.warmup_ratio", None, note="warmup_steps takes its place")
        draft.set("stage.optim.warmup_steps", int(steps), "warmup_steps")
        draft.settle("warmup_ratio", "no effect", "warmup_steps takes its place")
    else:
        draft.set("stage.optim.warmup_ratio", ratio, "warmup_ratio")
        draft.settle("warmup_steps", "no effect", "0: warmup_ratio counts")


def length(draft: Draft) -> None:
    """A positive max_steps alone decides: the data is read again until it is reached."""
    epochs, most = draft.number_of("num_train_epochs"), draft.number_of("max_steps", int)
    if most is not None and most > 0:
        draft.set("stage.epochs", None, note="max_steps alone decides the length")
        draft.set("stage.max_steps", most, "max_steps")
        draft.settle("num_train_epochs", "no effect", "max_steps alone decides the length")
        return
    draft.set("stage.epochs", epochs, "num_train_epochs")
    draft.settle("max_steps", "no effect", "not positive: num_train_epochs decides the length")


RULES = (schedule, length)
