"""AdamW's parameter groups and the learning rate of each step.

The rate is computed here and written into the groups by the loop, the same way for every engine: a scheduler inside
the engine is one more thing that can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmrun.config.schema import Optim

PARTS = ("llm", "tower", "connector")


@dataclass(frozen=True)
class Group:
    """Parameters that share a part, a rate and a weight decay."""

    part: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float


def part_of(name: str) -> str:
    """The part a parameter of the whole model belongs to: the first word of its name."""
    part = name.partition(".")[0]
    assert part in PARTS, f"{name} belongs to no part"
    return part


def groups(vlm: nn.Module, optim: Optim) -> list[Group]:
    """Trainable parameters, split by part and by whether they decay.

    Biases and normalisation weights do not decay, as in the recipes. Empty groups are left out: DeepSpeed refuses
    them. Frozen parameters are in none: the optimizer keeps no state for them.
    """
    rates = {"llm": optim.lr, "tower": optim.tower_lr, "connector": optim.connector_lr}
    undecayed = _undecayed(vlm)
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
            found.append(Group(part, names, parameters, lr, optim.weight_decay if decays else 0.0))
    return found


def optimizer(found: list[Group], optim: Optim) -> torch.optim.AdamW:
    """torch's AdamW: DeepSpeed's own would need a compiler at start-up."""
    described: list[dict[str, Any]] = [
        {"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay} for group in found
    ]
    first, second = optim.betas
    return torch.optim.AdamW(described, betas=(first, second), eps=optim.eps)


def warmup_steps(optim: Optim, steps: int) -> int:
    """Rounded up, as transformers does."""
    return math.ceil(optim.warmup_ratio * steps)


def schedule(optim: Optim, steps: int) -> Callable[[int], float]:
    """The factor on every group's rate, by the number of updates already made.

    Source: the formulas of transformers' `get_scheduler`, with which a test compares them.
    """
    warmup = warmup_steps(optim, steps)
    rest = max(1, steps - warmup)

    def factor(done: int) -> float:
        if done < warmup:
            return done / max(1, warmup)
        if optim.schedule == "constant":
            return 1.0
        if optim.schedule == "linear":
            return max(0.0, (steps - done) / rest)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / rest)))

    return factor


def _undecayed(vlm: nn.Module) -> set[str]:
    names = {name for name, _ in vlm.named_parameters() if "bias" in name.rpartition(".")[2]}
    # Of a matrix only whose new rows learn, decay would move the others.
    names |= {name for name, parameter in vlm.named_parameters() if hasattr(parameter, "new_rows")}
    for prefix, module in vlm.named_modules():
        if "norm" in type(module).__name__.lower():
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names
