"""AdamW's parameter groups and the learning rate of each step.

The rate is computed here and written into the groups by the loop, the same way for every engine: a scheduler inside
the engine is one more thing that can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from vlmrun import logs
from vlmrun.config import derived
from vlmrun.config.schema import Compat, Optim
from vlmrun.model import new_tokens
from vlmrun.names import PARTS
from vlmrun.train import cpu_adam, dist

log = logs.get(__name__)

# What transformers 4.3x knew as layer norms, besides torch's own; MiniCPM's norm is Granite's here.
_LISTED_NORMS = ("LayerNorm", "LlamaRMSNorm", "GraniteRMSNorm")


@dataclass(frozen=True)
class Group:
    """Parameters that share a part, a rate and a weight decay."""

    part: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float
    decays: bool = True  # whether a weight decay that changes is its own


def part_of(name: str) -> str:
    """The part a parameter of the whole model belongs to: the first word of its name."""
    part = name.partition(".")[0]
    assert part in PARTS, f"{name} belongs to no part"
    return part


def groups(vlm: nn.Module, optim: Optim, compat: Compat | None = None) -> list[Group]:
    """Trainable parameters, split by part and by whether they decay.

    Args:
        compat: `decay_unlisted_norms` and `offload_schedule` (one group, one rate, everything decays) change them.

    Biases and normalization weights do not decay, as in the recipes. Empty groups are left out: DeepSpeed refuses
    them. Frozen parameters are in none: the optimizer keeps no state for them.
    """
    rates = {"llm": optim.lr, "tower": optim.tower_lr, "connector": optim.connector_lr}
    undecayed = _undecayed(vlm, listed=compat is not None and compat.decay_unlisted_norms)
    found = []
    for part in PARTS:
        rate = rates[part]
        for decays in (True, False):
            named = [
                (name, parameter)
                for name, parameter in vlm.named_parameters()
                if parameter.requires_grad and part_of(name) == part and (name not in undecayed) == decays
            ]
            if not named:
                continue
            names, parameters = zip(*named, strict=True)
            lr = optim.lr if rate is None else rate
            found.append(Group(part, names, parameters, lr, optim.weight_decay if decays else 0.0, decays))
    if compat is not None and compat.offload_schedule:
        names = tuple(name for group in found for name in group.names)
        return [
            Group("all", names, tuple(p for group in found for p in group.parameters), optim.lr, optim.weight_decay)
        ]
    return found


def optimizer(found: list[Group], optim: Optim) -> torch.optim.Optimizer:
    """The optimizer that is asked for: AdamW, by torch, DeepSpeed or bitsandbytes.

    torch's is one kernel: it passes over weights, gradients and moments once and makes no tensors on its way; with one
    flat tensor for a group, as ZeRO has, the others take longer for that than for the update. DeepSpeed's is for state
    in host memory, and is compiled at its first use.
    """
    described: list[dict[str, Any]] = [
        {"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay} for group in found
    ]
    first, second = optim.betas
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(described, betas=(first, second), eps=optim.eps, fused=True)
    if optim.optimizer == "cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        log.info("DeepSpeed's CPU Adam is compiled at its first use, which takes minutes")
        with dist.main_first():
            cpu_adam.compiled()
        made = DeepSpeedCPUAdam(described, lr=optim.lr, betas=(first, second), eps=optim.eps, adamw_mode=True)
        return cast("torch.optim.Optimizer", made)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    kinds: dict[str, Any] = {
        "adamw_8bit": AdamW8bit,
        "paged_adamw": PagedAdamW32bit,
        "paged_adamw_8bit": PagedAdamW8bit,
    }
    made = kinds[optim.optimizer](described, lr=optim.lr, betas=(first, second), eps=optim.eps)
    return cast("torch.optim.Optimizer", made)


Shape = Callable[[float], float]  # share of the decay that is over -> share of the rate above its lowest

# Source: NVIDIA/Megatron-LM@64cbae55 megatron/core/optimizer_param_scheduler.py, get_lr
_COOLDOWNS: dict[str, Shape] = {
    "linear": lambda over: 1.0 - over,
    "cosine": lambda over: 0.5 * (1.0 + math.cos(math.pi * over)),
    "exponential": lambda over: 2.0 * 0.5**over - 1.0,
    "one_minus_sqrt": lambda over: 1.0 - math.sqrt(over),
}


def schedule(optim: Optim, steps: int, *, batch: int = 1, offloaded: bool = False) -> Callable[[int], float]:
    """The factor on every group's rate, by the number of updates already made.

    Args:
        batch: samples of an update: `inverse_sqrt` counts in them, which shows without a warm-up.
        offloaded: what zero3_offload.json and MiniCPM-V's JSON files did instead (`compat.offload_schedule`):
            DeepSpeed's WarmupLR, logarithmic to the full rate and constant from there. It stepped after the optimizer
            only: the first update ran at the full rate, the second at 0, as its first step has.

    Source: the formulas of transformers' `get_scheduler` for cosine, linear, polynomial and constant, those of
        Megatron-LM's OptimizerParamScheduler for inverse_sqrt, wsd, decay_steps and warmup_from. Tests compare both.
    """
    warmup = derived.warmup_steps(optim, steps)
    if offloaded:
        log_steps = math.log(max(2, warmup))
        return lambda done: 1.0 if done == 0 or done > warmup else math.log(done) / log_steps

    end = derived.decay_end(optim, steps)
    lowest, start = _shares(optim)
    shape = _shape(optim, warmup, end, batch)

    def factor(done: int) -> float:
        if done < warmup:
            return start + (1.0 - start) * done / max(1, warmup)
        if optim.schedule == "constant":
            return 1.0
        if done > end:
            return lowest
        if optim.schedule == "inverse_sqrt":
            return max(lowest, shape(done))
        return max(0.0, shape(done) * (1.0 - lowest) + lowest)

    return factor


def weight_decay(optim: Optim, steps: int) -> Callable[[int], float] | None:
    """Weight decay of the groups that decay, by the number of updates already made; None: it stays.

    Source: NVIDIA/Megatron-LM@64cbae55 megatron/core/optimizer_param_scheduler.py, get_wd
    """
    if optim.weight_decay_end is None:
        return None
    start, change = optim.weight_decay, optim.weight_decay_end - optim.weight_decay

    def value(done: int) -> float:
        over = done / steps
        if optim.weight_decay_schedule == "cosine":
            over = 0.5 * (math.cos(math.pi * (1.0 - over)) + 1.0)
        return start + over * change

    return value


def _shares(optim: Optim) -> tuple[float, float]:
    """The lowest rate and the one that the warm-up begins at, as shares of the rate."""
    of_rate = optim.lr or 1.0
    lowest = optim.min_lr_ratio if optim.min_lr is None else optim.min_lr / of_rate
    return lowest, optim.warmup_from / of_rate


def _shape(optim: Optim, warmup: int, end: int, batch: int) -> Callable[[int], float]:
    """Share of the way from the lowest to the full rate, by updates made; defined from the warm-up to the end."""
    rest = max(1, end - warmup)
    if optim.schedule == "cosine":
        return lambda done: 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / rest))
    if optim.schedule == "polynomial":
        return lambda done: ((end - done) / rest) ** optim.power
    if optim.schedule == "inverse_sqrt":
        return lambda done: math.sqrt(max(warmup * batch, 1)) / math.sqrt(max(done * batch, 1))
    if optim.schedule == "wsd":
        cooldown, falling = derived.cooldown_steps(optim, end), _COOLDOWNS[optim.cooldown_shape]
        return lambda done: falling(max(0, done - (end - cooldown)) / cooldown)
    return lambda done: (end - done) / rest


def _undecayed(vlm: nn.Module, *, listed: bool) -> set[str]:
    """Names of biases and norms; only of norms that old transformers listed as such, when `listed`."""
    names = {name for name, _ in vlm.named_parameters() if "bias" in name.rpartition(".")[2]}
    # Of a matrix only whose new rows learn, decay would move the others.
    names |= {name for name, parameter in vlm.named_parameters() if new_tokens.rows_of(parameter)}
    for prefix, module in vlm.named_modules():
        kind = type(module).__name__
        if kind in _LISTED_NORMS if listed else "norm" in kind.lower():
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names
