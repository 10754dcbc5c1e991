"""A saved model loads again from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from vlmrun.config.schema import ModelConfig, Target
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import table
from vlmrun.formats.base import How, Model, own_name, weights_of
from vlmrun.formats.instantiate import realise
from vlmrun.formats.modules import unknown
from vlmrun.model.parts import Loaded, assemble
from vlmrun.model.tune import trained_beside, wrap
from vlmrun.names import MODEL, WEIGHTS
from vlmrun.weights import native
from vlmrun.weights.adapter import Adapter, Base, fold, is_adapter_name, saved_name, trained_base
from vlmrun.weights.blocks import blocks
from vlmrun.weights.finite import require_of
from vlmrun.weights.native import weights_folder
from vlmrun.weights.reader import Reader


def _foreign(folder: Path, came_as: str | None, *, trusted: bool) -> Model | None:
    """The model of a folder in another format, itself or in a convert stage; None when it is one of ours.

    Args:
        trusted: digests are not compared.
    """
    folder = Path(folder)
    if any((place / MODEL).is_file() for place in (folder, folder / WEIGHTS)):
        return None
    place = folder / "model" if (folder / "model").is_dir() else folder
    name = came_as or table.find(place)
    if name is None:
        return None  # `weights_folder` says what is missing
    return table.read(place, How(trusted=trusted), name)


def describe(folder: Path, came_as: str | None = None) -> dict[str, Any]:
    """The `model.json` of an artifact or weights folder, or what it would be of a folder in another format.

    Args:
        came_as: the folder's format, where it is not to be detected.
    """
    foreign = _foreign(folder, came_as, trusted=True)
    if foreign is not None:
        return foreign.description
    return native.describe(folder)


def load(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    merge_adapter: bool = False,
    quantized: dict[str, Any] | None = None,
    came_as: str | None = None,
) -> Loaded:
    """Loads a saved model, in eval mode, with the template it was saved with.

    Args:
        folder: an artifact, its weights folder, or a whole model in another format.
        merge_adapter: fold an adapter into the LLM; otherwise PEFT wraps it.
        quantized: a quantized LLM (`quantise.of`), to train on; a model whose adapter was
            trained so is loaded so anyway.
        came_as: the folder's format, where it is not to be detected.

    Raises:
        CheckpointError: when something is missing, damaged or does not fit; when weights are not finite.
    """
    foreign = _foreign(folder, came_as, trusted=False)
    if foreign is not None:
        return _realised(foreign, Path(folder), dtype, attention, quantized)
    weights = weights_folder(folder)
    description = native.describe(weights)
    try:
        model = ModelConfig.model_validate(description["model"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"the description cannot be read: {error}",
            str(weights / MODEL),
            "restore it, or make the stage again",
        ) from error
    model = model.model_copy(update={"llm": _inside(model.llm, weights), "tower": _inside(model.tower, weights)})
    adapter = Adapter(weights / "adapter") if description.get("adapter") else None
    # PEFT is given what our own trainer makes; any other adapter is folded in.
    folded = adapter is not None and (merge_adapter or not adapter.plain)
    held = quantized if merge_adapter or folded else quantized or description.get("quantized")
    loaded = assemble(model, dtype=dtype, attention=attention, seed=0, quantized=held)
    _require_nothing_else(loaded, weights)
    loaded.template = description.get("template")
    fill_connector(loaded.vlm.connector, weights / "connector")
    loaded.sources["connector"] = weights / "connector"
    if adapter is not None:
        if folded:
            _merge(loaded.vlm.llm, adapter, trained_base(weights, description))
        else:
            loaded.vlm.llm = _wrapped(loaded.vlm.llm, adapter).eval()
            loaded.sources["adapter"] = adapter.folder
    _require_finite(loaded, weights)
    return loaded


def _realised(
    foreign: Model, folder: Path, dtype: torch.dtype, attention: str, quantized: dict[str, Any] | None
) -> Loaded:
    if quantized:
        raise CheckpointError(
            "a model in another format is not quantized when it is loaded",
            str(folder),
            "vlmrun convert SRC DST --to native",
        )
    loaded = realise(foreign, dtype=dtype, attention=attention)
    _require_finite(loaded, folder)
    return loaded


def _require_nothing_else(loaded: Loaded, weights: Path) -> None:
    """Refuses tensors in the files that no module takes, as `convert` does; those that are missing were noticed."""
    if loaded.quantized:  # packed layers keep more than their weight
        return
    problems = []
    for part in ("llm", "tower"):
        module = getattr(loaded.vlm, part)
        names = weights_of(part, Reader(weights / part).names())
        held = {own_name(part, name) for name in names}
        problems += [Problem(f"{part}.{name} is unknown", str(weights)) for name in unknown(part, module, held)]
    if problems:
        raise CheckpointError(problems)


def _require_finite(loaded: Loaded, place: Path) -> None:
    """Looks at what this process holds; of sharded weights that is its share."""
    named = loaded.vlm.named_parameters()
    require_of(((name, getattr(value, "ds_tensor", value).detach()) for name, value in named), place)


def _inside(target: Target, weights: Path) -> Target:
    """A part's target with its path made absolute; a path out of the folder is refused."""
    path = (weights / str(target.arguments.get("path", ""))).resolve()
    if not path.is_relative_to(weights.resolve()):
        raise CheckpointError(
            f"the description points outside its folder: {path}", str(weights / MODEL), "do not use it"
        )
    return Target.model_validate({"_target_": target.target, **target.arguments, "path": str(path)})


def fill_connector(connector: nn.Module, folder: Path) -> None:
    """Loads a connector's weights, all of them and no other."""
    reader = Reader(folder)
    expected = {name: tuple(value.shape) for name, value in connector.state_dict().items()}
    found = {name: reader.shape(name) for name in reader.names()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = different[0]
        raise CheckpointError(
            f"the connector's weights do not fit: {name} is {found.get(name)}, expected {expected.get(name)}",
            str(folder),
            "weights and model.json belong to different models: make the stage again",
        )
    connector.load_state_dict({name: reader.get(name) for name in found})


def _wrapped(llm: nn.Module, adapter: Adapter) -> nn.Module:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wrapped = wrap(llm, adapter.config)
    state = adapter.state()
    # PEFT 0.21 looks for biases of adapted layers under names that they do not have: they are carried here.
    biases = {saved_name(name): p for name, p in wrapped.named_parameters() if name in trained_beside(wrapped)}
    expected = {name: tuple(value.shape) for name, value in _lora_only(get_peft_model_state_dict(wrapped)).items()}
    expected |= {name: tuple(value.shape) for name, value in biases.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"the adapter does not fit the LLM: {', '.join(different[:3])}", str(adapter.folder), "make the stage again"
        )
    set_peft_model_state_dict(wrapped, _lora_only(state))
    with torch.no_grad():
        for name, parameter in biases.items():
            parameter.copy_(state[name])
    return wrapped.requires_grad_(False)


def _lora_only(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if is_adapter_name(name)}


def put_adapter(llm: nn.Module, adapter: Adapter) -> nn.Module:
    """The LLM with an adapter in it, as a saved model is loaded: PEFT's for what our trainer makes, else folded in."""
    if adapter.plain:
        return _wrapped(llm, adapter).eval()
    _merge(llm, adapter, Base())
    return llm


@torch.no_grad()
def _merge(llm: nn.Module, adapter: Adapter, base: Base) -> None:
    problems = adapter.problems({name: tuple(parameter.shape) for name, parameter in llm.named_parameters()})
    if problems:
        raise CheckpointError(problems)
    for name, parameter in llm.named_parameters():
        parameter.copy_(base(name, parameter))
        if adapter.touches(name):
            rows = parameter.view(len(parameter), -1)
            for start, stop in blocks(tuple(parameter.shape)):  # as `merge` cuts it: equal bit for bit
                rows[start:stop] = fold(name, rows[start:stop], start, [(adapter, 1.0)])
