"""What LoRA is put on: linear layers by name, modules that train whole beside them, patterns of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vlmrun import endings, expressions
from vlmrun.config.schema import Lora
from vlmrun.errors import ConfigError, Problem, suggest
from vlmrun.model import blocks, named_modules

WHERE = "stage.*.lora"
NAMES = {"llm": "LLM", "tower": "vision tower"}


def config(module: nn.Module, lora: Lora, *, part: str = "llm", last: int | None = None) -> dict[str, Any]:
    """The values of PEFT's `LoraConfig` for a part.

    Args:
        last: adapters are put on the last blocks only; None: on all.

    Raises:
        ConfigError: when targets, modules or patterns match nothing.
    """
    without = {id(parameter) for parameter in unused(module)}
    within = ("",) if last is None else blocks.last(bare(module), last, f"stage.*.tune.{part}_last", without=without)
    targets = lora_targets(module, lora.targets, part=part, within=within)
    _check_patterns(module, lora, targets)
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "bias": lora.bias,
        "modules_to_save": lora.modules_to_save,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
        "task_type": "CAUSAL_LM",
    }


def bare(module: Any) -> Any:
    """An LLM without PEFT's wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def unused(module: Any) -> list[nn.Parameter]:
    """Parameters of a tower that nothing depends on; an LLM has none."""
    return list(module.unused()) if hasattr(module, "unused") else []


def lora_targets(
    module: nn.Module, targets: str | list[str], *, part: str = "llm", within: tuple[str, ...] = ("",)
) -> list[str]:
    """The names PEFT is given: last names of linear layers, checked one by one, or whole names.

    Args:
        targets: `all-linear` for every linear layer but the output head; another text is a regular expression that the
            whole of a name must match, the part and a dot in front.
        within: beginnings of the names of layers that may have adapters.

    Raises:
        ConfigError: naming every target that matches no linear layer, with the nearest that would.
    """
    every, others = linear_layers(module)
    linear = [name for name in every if name.startswith(within)]
    names = {name.rpartition(".")[2] for name in linear}
    # Last names would match other layers too, those of other blocks or a head: give full names then.
    whole = len(linear) < len(every) or bool({name.rpartition(".")[2] for name in others} & names)
    if targets == "all-linear":
        return sorted(linear) if whole else sorted(names)
    if isinstance(targets, str):
        return _matching(linear, targets, part)
    unmatched = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if unmatched or not targets:
        raise ConfigError(
            [
                Problem(
                    f"LoRA target {t!r} matches no linear layer of the {NAMES[part]}",
                    f"{WHERE}.targets",
                    _nearest(t, names),
                )
                for t in unmatched
            ]
            or [Problem("LoRA has no targets", f"{WHERE}.targets", _nearest("all-linear", names))]
        )
    if whole:
        return sorted(name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets))
    return sorted(set(targets))


def _matching(linear: list[str], pattern: str, part: str) -> list[str]:
    try:
        found = [name for name in linear if expressions.matches(pattern, f"{part}.{name}")]
    except ConfigError as error:
        raise ConfigError([replace(problem, where=f"{WHERE}.targets") for problem in error.problems]) from error
    if not found:
        raise ConfigError(
            f"LoRA's {pattern!r} matches no linear layer of the {NAMES[part]}",
            f"{WHERE}.targets",
            f"the whole of a name must match, such as {part}.{linear[0]}" if linear else "all-linear",
        )
    return sorted(found)


def check_modules(llm: nn.Module, modules: Sequence[str], targets: Sequence[str]) -> None:
    names = {name.rpartition(".")[2] for name, module in llm.named_modules() if list(module.parameters(recurse=False))}
    problems = [
        Problem(f"no module of the LLM is called {name!r}", f"{WHERE}.modules_to_save", suggest(name, names))
        for name in modules
        if name not in names
    ]
    problems += [
        Problem(f"{name!r} has adapters and is to train whole as well", f"{WHERE}.modules_to_save", "one of the two")
        for name in modules
        if any(target.rpartition(".")[2] == name for target in targets)
    ]
    problems += named_modules.shared(llm, modules, WHERE)
    if problems:
        raise ConfigError(problems)


def _check_patterns(module: nn.Module, lora: Lora, targets: Sequence[str]) -> None:
    """A pattern that matches no adapted layer would have no effect."""
    adapted = sorted(fitting(module, targets))
    problems = []
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, key):
            if what := endings.fault(pattern):
                problems.append(Problem(what, f"{WHERE}.{key}", endings.FIX))
            elif not any(endings.ends_as(pattern, name) for name in adapted):
                fix = f"the end of a name must match, such as {adapted[0]}"
                problems.append(Problem(f"{pattern!r} matches no layer with an adapter", f"{WHERE}.{key}", fix))
    if problems:
        raise ConfigError(problems)


def fitting(module: nn.Module, targets: Sequence[str]) -> set[str]:
    """Names of the linear layers that PEFT puts adapters on when it is given these targets."""
    return {name for name in linear_layers(module)[0] if any(name == t or name.endswith(f".{t}") for t in targets)}


def adapted(module: nn.Module) -> set[str]:
    """Names of the layers that carry adapters, as the plain model calls them."""
    return {name.removesuffix(".lora_A") for name, _ in bare(module).named_modules() if name.endswith(".lora_A")}


def linear_layers(module: Any) -> tuple[list[str], list[str]]:
    """Names of the linear layers that may have adapters, adapted or not; and of those that may not: head, unused."""
    base = bare(module)
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    without = {id(parameter) for parameter in unused(base)}
    names: list[str] = []
    others: list[str] = []
    for name, one in base.named_modules():
        if not isinstance(one, nn.Linear) or ".lora_" in name:
            continue
        found = others if one is output or id(one.weight) in without else names
        found.append(name.removesuffix(".base_layer"))
    return names, others


def _nearest(target: str, names: set[str]) -> str:
    return suggest(target, {*names, "all-linear"}, noun="targets")
