"""The modules that a description asks for, to be filled or only looked at."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from vlmrun.build import build
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats.base import LLM_CONFIG, TOWER_CONFIG, Model
from vlmrun.model import families, pretrained
from vlmrun.model.parts import make_connector
from vlmrun.model.towers.base import Tower
from vlmrun.model.towers.hf import HuggingFaceTower

_SHOWN = 20


def modules(model: Model, *, dtype: torch.dtype, attention: str) -> dict[str, nn.Module]:
    """Those of llm, tower and connector that the model has, with random weights, in eval mode.

    Raises:
        CheckpointError: when a configuration is missing.
        ConfigError: when a part takes other arguments.
    """
    from transformers import AutoModelForCausalLM

    config, found = model.config, {}
    how: dict[str, Any] = {"dtype": dtype, "attention": attention}
    if LLM_CONFIG in model.json:
        values = families.from_values(model.json[LLM_CONFIG])
        found["llm"] = pretrained.create(AutoModelForCausalLM, values, **how)
    if config is not None and TOWER_CONFIG in model.json:
        given = {key: value for key, value in config.tower.arguments.items() if key != "path"}
        target = {"_target_": config.tower.target, **given, "config": model.json[TOWER_CONFIG]}
        tower: Tower = build(Target.model_validate(target), Tower, **how)
        width = found["llm"].config.get_text_config().hidden_size
        found |= {"tower": tower.eval(), "connector": make_connector(config, tower, width).to(dtype).eval()}
    return found


def on_meta(model: Model) -> dict[str, nn.Module]:
    """The same without memory for weights: names and shapes."""
    with torch.device("meta"):
        return modules(model, dtype=torch.float32, attention="eager")


def check(model: Model) -> None:
    """Compares the tensors with those that the configurations ask for.

    Raises:
        CheckpointError: listing every tensor that is missing, unknown, or of another shape.
    """
    problems: list[Problem] = []
    for part, module in on_meta(model).items():
        if part == "tower" and not isinstance(module, HuggingFaceTower):
            continue  # timm's is cut off behind the deepest layer: its own loader compares
        expected, tied = _expected(part, module)
        here = model.part(part)
        ours = _in_module(module, here, expected)
        missing = expected.keys() - set(ours.values()) - tied
        problems += [Problem(f"{part}.{name} is missing") for name in sorted(missing)]
        problems += [Problem(f"{part}.{name} is unknown") for name in sorted(ours) if ours[name] not in expected]
        problems += [
            Problem(f"{part}.{name} is {list(here[name].shape)}, its configuration says {list(expected[name])}")
            for name in sorted(expected.keys() & here.keys())
            if tuple(here[name].shape) != expected[name]
        ]
    if problems:
        left = [Problem(f"and {len(problems) - _SHOWN} more")] if len(problems) > _SHOWN else []
        raise CheckpointError(
            [Problem("the tensors are not those of the configurations", "", _FIX), *problems[:_SHOWN], *left]
        )


_FIX = "files are missing or belong to different models; a delta or an adapter needs --base"


def unknown(part: str, module: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the names that a part's files hold, those that none of its tensors has."""
    if part == "tower" and not isinstance(module, HuggingFaceTower):
        return []  # as `check`
    expected = _expected(part, module)[0]
    return sorted(name for name, ours in _in_module(module, names, expected).items() if ours not in expected)


def _in_module(module: nn.Module, names: Iterable[str], expected: Collection[str]) -> dict[str, str]:
    """Names in files -> names of the module: of some families, files hold every expert, the module one tensor of all.

    transformers renames and joins them when it loads, so shapes under another name are for it to compare.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    found = {name: name for name in names}
    odd = [name for name in found if name not in expected]
    if odd and isinstance(module, PreTrainedModel):
        changes = get_model_conversion_mapping(module)
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        joined = [change for change in changes if isinstance(change, WeightConverter)]
        found |= {name: rename_source_key(name, renamings, joined)[0] for name in odd}
    return found


def _expected(part: str, module: nn.Module) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes by name, and the names whose tensor another name has too, so that files may leave it out."""
    state: dict[str, Any] = module.state_dict(keep_vars=True)
    rename = module.saved_name if isinstance(module, Tower) else str
    seen: set[int] = set()
    tied = set()
    for name, value in state.items():
        if id(value) in seen:
            tied.add(rename(name))
        seen.add(id(value))
    return {rename(name): tuple(value.shape) for name, value in state.items()}, tied
