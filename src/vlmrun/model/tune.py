"""What of a VLM learns: each part left alone, trained whole, or (the LLM) trained through LoRA adapters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vlmrun import expressions
from vlmrun.config.schema import Lora, Tune
from vlmrun.errors import ConfigError, Problem, suggest
from vlmrun.model import named_modules, new_tokens
from vlmrun.model.parts import seeded
from vlmrun.model.vlm import VLM

WHERE = "stage.*.lora"


def apply(vlm: VLM, tune: Tune, lora: Lora | None, *, seed: int = 0, new_rows: Sequence[int] = ()) -> None:
    """Sets `requires_grad` of every parameter; with `llm: lora` or `qlora`, PEFT wraps `vlm.llm` and nothing else.

    An adapter that is there already (the stage started from a LoRA stage) is trained on when its shape is the same,
    and stays in place, frozen, with `llm: freeze`.

    Args:
        seed: what the adapters' first values are drawn from.
        new_rows: ids of the tokens that the model adds, for `llm: new_tokens`.

    Raises:
        ConfigError: when LoRA targets match nothing, or an adapter that is there already is in the way.
    """
    vlm.requires_grad_(False)
    vlm.connector.requires_grad_(tune.connector == "full")
    if tune.tower == "full":
        vlm.tower.requires_grad_(True)
        for parameter in vlm.tower.unused():
            # It would get no gradient, yet ZeRO's flat optimizer would still decay it.
            parameter.requires_grad_(False)
    if tune.llm == "full":
        _refuse_adapter(vlm.llm)
        vlm.llm.requires_grad_(True)
    elif tune.llm == "new_tokens":
        _refuse_adapter(vlm.llm)
        new_tokens.train_rows(vlm.llm, new_rows)
    elif tune.adapters:
        _tune_lora(vlm, lora, seed)


def has_adapter(llm: nn.Module) -> bool:
    """Whether PEFT wraps this LLM; found without importing PEFT."""
    return hasattr(llm, "peft_config")


def adapter_config(llm: nn.Module) -> dict[str, Any]:
    """What `adapter_config.json` says of a wrapped LLM."""
    config: Any = llm.peft_config["default"]  # type: ignore[index]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "../llm",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules),
        "bias": config.bias,
        "modules_to_save": sorted(saved_modules(llm)) or None,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "inference_mode": True,
    }


def wrap(llm: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Puts LoRA layers of an `adapter_config` into an LLM; their type is the LLM's."""
    from peft import LoraConfig, get_peft_model

    kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora", "task_type")
    made = LoraConfig(**{key: config[key] for key in kept if key in config})
    # One type for all parameters: ZeRO-3 partitions nothing else, and bf16 LoRA is what the engine would cast to.
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that is deprecated there.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        wrapped: nn.Module = get_peft_model(llm, made, autocast_adapter_dtype=False)
    dtype = next(parameter.dtype for parameter in llm.parameters() if parameter.is_floating_point())  # not a packed one
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    wrapped.saved_modules = tuple(config.get("modules_to_save") or ())  # type: ignore[assignment]
    return wrapped


def saved_modules(llm: Any) -> tuple[str, ...]:
    """Last names of the modules that train whole beside the adapters, in place.

    PEFT itself would keep the untrained module and a copy of it that learns; the files are the same.
    """
    return tuple(getattr(llm, "saved_modules", ()))


def trained_beside(llm: Any) -> set[str]:
    """Names of the parameters of a wrapped LLM that train beside its adapters: biases (all, or those of adapted
    layers) and whole modules."""
    bias, modules = llm.peft_config["default"].bias, saved_modules(llm)
    names = {name for name, _ in llm.named_parameters() if ".lora_" not in name}
    found = {name for name in names if modules and name.rpartition(".")[0].rpartition(".")[2] in modules}
    if bias != "none":
        found |= {name for name in names if name.endswith(".bias" if bias == "all" else ".base_layer.bias")}
    return found


def lora_targets(llm: nn.Module, targets: str | list[str]) -> list[str]:
    """The names PEFT is given: last names of linear layers, checked one by one, or whole names.

    Args:
        targets: `all-linear` for every linear layer but the output head; another text is a regular expression that the
            whole of a name must match, `llm.` in front.

    Raises:
        ConfigError: naming every target that matches no linear layer, with the nearest that would.
    """
    linear, head = _linear_layers(llm)
    names = {name.rpartition(".")[2] for name in linear}
    if targets == "all-linear":
        # A head that shares its last name with other layers would be matched with them: give full names then.
        return sorted(linear) if head and head.rpartition(".")[2] in names else sorted(names)
    if isinstance(targets, str):
        return _matching(linear, targets)
    unmatched = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if unmatched or not targets:
        raise ConfigError(
            [
                Problem(f"LoRA target {t!r} matches no linear layer of the LLM", f"{WHERE}.targets", _nearest(t, names))
                for t in unmatched
            ]
            or [Problem("LoRA has no targets", f"{WHERE}.targets", _nearest("all-linear", names))]
        )
    return sorted(set(targets))


def _matching(linear: list[str], pattern: str) -> list[str]:
    try:
        found = [name for name in linear if expressions.matches(pattern, f"llm.{name}")]
    except ConfigError as error:
        raise ConfigError([replace(problem, where=f"{WHERE}.targets") for problem in error.problems]) from error
    if not found:
        raise ConfigError(
            f"LoRA's {pattern!r} matches no linear layer of the LLM",
            f"{WHERE}.targets",
            f"the whole of a name must match, such as llm.{linear[0]}" if linear else "all-linear",
        )
    return sorted(found)


def _check_modules(llm: nn.Module, modules: Sequence[str], targets: Sequence[str]) -> None:
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


def _linear_layers(llm: Any) -> tuple[list[str], str | None]:
    """Names of the linear layers but the head, adapted or not, and the head's name."""
    base = llm.get_base_model() if has_adapter(llm) else llm
    output = base.get_output_embeddings()
    names, head = [], None
    for name, module in base.named_modules():
        if module is output:
            head = name
        elif isinstance(module, nn.Linear) and ".lora_" not in name:
            names.append(name.removesuffix(".base_layer"))
    return names, head


def _nearest(target: str, names: set[str]) -> str:
    return suggest(target, {*names, "all-linear"}, noun="targets")


def _tune_lora(vlm: VLM, lora: Lora | None, seed: int) -> None:
    if lora is None:
        raise ConfigError("llm: lora needs to know the adapters' shape", WHERE, "set stage.NAME.lora: {r, alpha, ...}")
    if has_adapter(vlm.llm):
        _check_same_shape(vlm.llm, lora)
    else:
        config: dict[str, Any] = {
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": lora_targets(vlm.llm, lora.targets),
            "bias": lora.bias,
            "modules_to_save": lora.modules_to_save,
            "task_type": "CAUSAL_LM",
        }
        _check_modules(vlm.llm, lora.modules_to_save, config["target_modules"])
        training = vlm.llm.training
        with seeded(seed, "adapter"):
            vlm.llm = wrap(vlm.llm, config).train(training)
    trained = trained_beside(vlm.llm)
    for name, parameter in vlm.llm.named_parameters():
        parameter.requires_grad_("lora_" in name or name in trained)
    named_modules.prove_trained(vlm.llm, lora, WHERE)


def _check_same_shape(llm: nn.Module, lora: Lora) -> None:
    """Training on goes with the adapter as it is; only dropout may change, being no part of its shape."""
    have = adapter_config(llm)
    wanted = lora_targets(llm, lora.targets)
    keys = ("r", "lora_alpha", "target_modules", "bias", "modules_to_save")
    if [have[key] for key in keys] != [lora.r, lora.alpha, wanted, lora.bias, sorted(lora.modules_to_save) or None]:
        raise ConfigError(
            f"the model has an adapter of r {have['r']}, alpha {have['lora_alpha']}, targets {have['target_modules']}, "
            f"bias {have['bias']}, modules_to_save {have['modules_to_save']}",
            WHERE,
            "give the same values to train it on, or merge it first (a stage of kind merge) and start from that",
        )
    for module in llm.modules():
        dropouts = getattr(module, "lora_dropout", None)
        if isinstance(dropouts, nn.ModuleDict):
            dropouts["default"] = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()


def _refuse_adapter(llm: nn.Module) -> None:
    if has_adapter(llm):
        raise ConfigError(
            "the LLM cannot be trained whole while it has an adapter",
            "stage.*.tune.llm",
            "merge the adapter first (a stage of kind merge) and start from that",
        )
