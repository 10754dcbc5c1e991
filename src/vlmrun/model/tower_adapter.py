"""LoRA in the vision tower: put into its layers for training, folded into its weights when that is over.

Everything behind training sees a plain tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.config.schema import Lora
from vlmrun.model import lora as adapters
from vlmrun.model.parts import seeded

_BASE, _NAME = ".base_layer.weight", "default"


def put(tower: nn.Module, lora: Lora, *, last: int | None, seed: int) -> None:
    """Puts adapters into a tower and trains them, and nothing else of it. Their type is the tower's.

    Raises:
        ConfigError: when targets match nothing.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = adapters.config(tower, lora, part="tower", last=last)
    made = LoraConfig(**{key: value for key, value in config.items() if key not in ("modules_to_save", "task_type")})
    dtype = next(parameter.dtype for parameter in tower.parameters() if parameter.is_floating_point())
    training = tower.training
    with seeded(seed, "tower adapter"):
        inject_adapter_in_model(made, tower)
    tower.train(training)
    for name, parameter in tower.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_("lora_" in name)


def folded(tower: nn.Module, gathered: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """A tower's parameters with its adapters folded in, under their names in a plain tower; others pass unchanged.

    LoRA adds s B A in fp32; DoRA (arXiv:2402.09353) then scales every row to the length that was trained.

    Args:
        gathered: (name, whole tensor) in the order of `named_parameters`: a layer's weight, then its A, B, lengths.
            On ranks other than 0 tensors are empty, and nothing is computed.
    """
    held: dict[str, Tensor] = {}
    layer = ""
    for name, tensor in gathered:
        if layer and not name.startswith(f"{layer}."):
            yield from _fold(tower, layer, held)
            layer, held = "", {}
        if name.endswith(_BASE):
            layer, held = name.removesuffix(_BASE), {"weight": tensor}
        elif layer:  # its bias, or something of the adapter
            inside = name.removeprefix(f"{layer}.").removeprefix("base_layer.")
            held[inside.partition(".")[0]] = tensor
        else:
            yield name, tensor
    if layer:
        yield from _fold(tower, layer, held)


def _fold(tower: nn.Module, layer: str, held: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weight and bias of an adapted layer."""
    weight = held["weight"]
    if weight.numel():
        module: Any = tower.get_submodule(layer)
        scale = module.scaling[_NAME]
        total = torch.addmm(weight.float(), held["lora_B"].float(), held["lora_A"].float(), alpha=scale)
        if "lora_magnitude_vector" in held:
            total *= (held["lora_magnitude_vector"].float() / total.norm(dim=1)).unsqueeze(1)
        weight = total.to(weight.dtype)
    yield f"{layer}.weight", weight
    if "bias" in held:
        yield f"{layer}.bias", held["bias"]
