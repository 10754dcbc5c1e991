"""What of a VLM learns: each part left alone, trained whole, or (the LLM) trained through LoRA adapters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from vlmrun import endings
from vlmrun.config.schema import Lora, Tune
from vlmrun.errors import ConfigError
from vlmrun.model import blocks, named_modules, new_tokens, tower_adapter
from vlmrun.model import lora as adapters
from vlmrun.model.lora import WHERE, lora_targets
from vlmrun.model.parts import seeded
from vlmrun.model.vlm import VLM

__all__ = ["adapter_config", "apply", "has_adapter", "lora_targets", "saved_modules", "trained_beside", "wrap"]


def apply(
    vlm: VLM,
    tune: Tune,
    lora: Lora | None,
    *,
    tower_lora: Lora | None = None,
    seed: int = 0,
    new_rows: Sequence[int] = (),
) -> None:
    """Sets `requires_grad` of every parameter; with `llm: lora` or `qlora`, PEFT wraps `vlm.llm`.

    An adapter that is there already (the stage started from a LoRA stage) is trained further when its shape is the
    same, and stays in place, frozen, with `llm: freeze`. With `tower: lora` PEFT puts layers into `vlm.tower`.

    Args:
        tower_lora: shape of the adapters of the tower.
        seed: what the adapters' first values are drawn from.
        new_rows: ids of the tokens that the model adds, for `llm: new_tokens`.

    Raises:
        ConfigError: when LoRA targets match nothing, there are fewer blocks than asked for, or an adapter that is
            there already is in the way.
    """
    vlm.requires_grad_(False)
    vlm.connector.requires_grad_(tune.connector == "full")
    if tune.tower == "full":
        _train_last(vlm.tower, tune.tower_last, "stage.*.tune.tower_last")
    elif tune.tower == "lora":
        assert tower_lora is not None, "checked: the adapters have a shape"
        tower_adapter.put(vlm.tower, tower_lora, last=tune.tower_last, seed=seed)
    if tune.llm == "full":
        _refuse_adapter(vlm.llm)
        _train_last(vlm.llm, tune.llm_last, "stage.*.tune.llm_last")
    elif tune.llm == "new_tokens":
        _refuse_adapter(vlm.llm)
        new_tokens.train_rows(vlm.llm, new_rows)
    elif tune.adapters:
        _tune_lora(vlm, tune, lora, seed)


# Of an adapter's config, what PEFT is given; the rest is about files and loading.
KEPT = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora", "rank_pattern",
        "alpha_pattern", "task_type")  # fmt: skip


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
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "inference_mode": True,
    }


def wrap(llm: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Puts LoRA layers of an `adapter_config` into an LLM; their type is the LLM's."""
    from peft import LoraConfig, get_peft_model

    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or ():
            if what := endings.fault(str(pattern)):
                raise ConfigError(what, f"adapter_config.json: {key}", endings.FIX)
    made = LoraConfig(**{key: config[key] for key in KEPT if config.get(key) is not None})
    # One type for all parameters: ZeRO-3 partitions nothing else, and bf16 LoRA is what the engine would cast to.
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that is deprecated there.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern", RuntimeWarning)
        wrapped: nn.Module = get_peft_model(llm, made, autocast_adapter_dtype=False)
    if made.target_parameters:
        asked = sorted(set(config["target_modules"]) - set(made.target_modules or ()))
        raise ConfigError(
            f"PEFT would put adapters on every expert instead of the layers {', '.join(asked)}",
            "stage.*.lora.targets",
            f"leave them out: [{', '.join(sorted(made.target_modules or ()))}]",
        )
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


def _tune_lora(vlm: VLM, tune: Tune, lora: Lora | None, seed: int) -> None:
    if lora is None:
        raise ConfigError("llm: lora needs to know the adapters' shape", WHERE, "set stage.NAME.lora: {r, alpha, ...}")
    if has_adapter(vlm.llm):
        _check_same_shape(vlm.llm, tune, lora)
    else:
        config = adapters.config(vlm.llm, lora, last=tune.llm_last)
        adapters.check_modules(vlm.llm, lora.modules_to_save, config["target_modules"])
        training = vlm.llm.training
        with seeded(seed, "adapter"):
            vlm.llm = wrap(vlm.llm, config).train(training)
    trained = trained_beside(vlm.llm)
    for name, parameter in vlm.llm.named_parameters():
        parameter.requires_grad_("lora_" in name or name in trained)
    named_modules.prove_trained(vlm.llm, lora, WHERE)


_SHAPE = ("r", "lora_alpha", "bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def _check_same_shape(llm: nn.Module, tune: Tune, lora: Lora) -> None:
    """An adapter that is trained further stays as it is; only dropout may change, being no part of its shape."""
    have, wanted = adapter_config(llm), adapters.config(llm, lora, last=tune.llm_last)
    saved = sorted(lora.modules_to_save) or None
    different = [key for key in _SHAPE if have[key] != wanted[key]]
    # Not the lists of names: PEFT shortens a long one, so the same layers may be named otherwise.
    if adapters.adapted(llm) != adapters.fitting(llm, wanted["target_modules"]):
        different.append("target_modules")
    different += ["modules_to_save"] if have["modules_to_save"] != saved else []
    if different:
        raise ConfigError(
            f"the model has an adapter of another shape: {', '.join(f'{key} {have[key]}' for key in different)}",
            WHERE,
            "give the same values to train it further, or merge it first (a stage of kind merge) and start from that",
        )
    for module in llm.modules():
        dropouts = getattr(module, "lora_dropout", None)
        if isinstance(dropouts, nn.ModuleDict):
            dropouts["default"] = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()


def _train_last(module: nn.Module, n: int | None, where: str) -> None:
    """Trains a part whole, or its last blocks; what it does not use stays as it is.

    Unused parameters would get no gradient, yet ZeRO's flat optimizer would still decay them.
    """
    without = {id(parameter) for parameter in adapters.unused(module)}
    within = ("",) if n is None else blocks.last(module, n, where, without=without)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(within) and id(parameter) not in without)


def _refuse_adapter(llm: nn.Module) -> None:
    if has_adapter(llm):
        raise ConfigError(
            "the LLM cannot be trained whole while it has an adapter",
            "stage.*.tune.llm",
            "merge the adapter first (a stage of kind merge) and start from that",
        )
