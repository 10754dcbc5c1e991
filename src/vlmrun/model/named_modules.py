"""What a configuration names of an LLM, by the names that its modules have: proven to train, or refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vlmrun.config.schema import Lora
from vlmrun.errors import ConfigError, Problem

_TIED = "leave it out, or train the LLM whole (tune.llm: full): an adapter's file holds one of the two only"


def shared(llm: nn.Module, modules: Sequence[str], where: str) -> list[Problem]:
    """Of modules that are to train whole beside adapters, those whose weights another module has too (tied)."""
    homes: dict[int, list[str]] = {}
    for name, parameter in llm.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    pairs = [pair for each in homes.values() if len(each) > 1 for pair in (each[:2], each[1::-1])]
    others = {one.rpartition(".")[2]: other for one, other in pairs}
    return [
        Problem(f"{name!r} shares its weights with {others[name]!r}", f"{where}.modules_to_save", _TIED)
        for name in modules
        if name in others
    ]


def prove_trained(llm: nn.Module, lora: Lora, where: str) -> None:
    """Looks for a parameter that learns in every module and every layer that was named.

    Raises:
        ConfigError: naming each that was accepted and would have no effect.
    """
    learns = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    inside = {part for name in learns for part in name.split(".")}
    problems = [
        Problem(f"nothing of {name!r} would be trained", f"{where}.modules_to_save", "leave it out")
        for name in lora.modules_to_save
        if name not in inside
    ]
    targets = lora.targets if isinstance(lora.targets, list) else []
    problems += [
        Problem(f"no layer of {name!r} would be trained", f"{where}.targets", "leave it out")
        for name in targets
        if not any(f".{name}.lora_" in each for each in learns)
    ]
    if problems:
        raise ConfigError(problems)
