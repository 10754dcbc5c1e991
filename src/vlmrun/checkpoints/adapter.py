"""LoRA adapters on disk, and the arithmetic that folds them into weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlmrun import artifact
from vlmrun.checkpoints.tensors import DTYPES, Reader
from vlmrun.errors import CheckpointError
from vlmrun.model import quantise
from vlmrun.model.pretrained import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def saved_name(name: str) -> str:
    """Name in the adapter's file of a parameter of a PEFT-wrapped LLM."""
    return name.replace(".default.", ".").replace(".base_layer.bias", ".bias")


def is_adapter_name(name: str) -> bool:
    """Whether a parameter of a PEFT-wrapped LLM belongs to the adapter."""
    return "lora_" in name


def write(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Writes a PEFT folder; names may be those of the parameters or those of the file."""
    tensors = {saved_name(name): tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    with artifact.writing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    artifact.write_json(folder / CONFIG, config)


Base = Callable[[str, torch.Tensor], torch.Tensor]


def trained_base(weights: Path, description: dict[str, Any]) -> Base:
    """What a saved model's adapter was trained on, from a weight's name and its value in the `llm` folder.

    That is the value itself, or for a quantised LLM what is left of it in few bits, in the type of the training.

    Raises:
        CheckpointError: when bitsandbytes is missing, or the folder names its weights otherwise than the model does.
    """
    kind = description.get("quantized")
    if kind is None:
        return lambda _name, weight: weight
    quantise.check(kind)
    names, dtype = quantise.layers(weights / "llm", kind), DTYPES[description["dtype"]]
    unknown = sorted(names - set(Reader(weights / "llm").names()))
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights that were trained on in few bits are not in the folder: {', '.join(unknown[:3])}",
            str(weights / "llm"),
            "an LLM whose files name weights otherwise than its modules cannot be merged",
        )
    return lambda name, weight: quantise.rounded(weight, dtype, kind) if name in names else weight


class Adapter:
    """A PEFT LoRA folder as a function from a base weight's name to what is added to it.

    The sum is base + (alpha / r) B A, in fp32 (alpha / sqrt(r) for rank-stabilised LoRA).

    Raises:
        CheckpointError: when the folder is damaged or holds a kind of adapter that this arithmetic does not cover.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / CONFIG, "the adapter is incomplete: make the stage again")
        self._reader = Reader(folder)
        _check_kind(self.config, folder)
        self._left = set(self._reader.names())

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors, under their names in the file."""
        return {name: self._reader.get(name) for name in self._reader.names()}

    def delta(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """What is added to the base weight `name`; None when the adapter leaves it alone."""
        stem = _PREFIX + name.removesuffix(".weight")
        names = {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
        if not name.endswith(".weight") or not names & set(self._reader.names()):
            return None
        down, up = (self._reader.get(n).float() for n in sorted(names))
        if self.config.get("fan_in_fan_out"):
            shape = shape[::-1]
        if down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != tuple(shape):
            raise CheckpointError(
                f"the adapter of {name!r} does not fit: B {list(up.shape)}, A {list(down.shape)}, weight {list(shape)}",
                str(self.folder),
                "merge it into the LLM it was trained on",
            )
        self._left -= names
        rank = down.shape[0]
        scale = self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        product = scale * (up @ down)
        return product.T if self.config.get("fan_in_fan_out") else product

    def bias(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """The value that a bias was trained to; None when the adapter leaves it alone."""
        saved = _PREFIX + name
        if not name.endswith(".bias") or saved not in self._left:
            return None
        value = self._reader.get(saved)
        if tuple(value.shape) != tuple(shape):
            raise CheckpointError(
                f"the adapter of {name!r} does not fit: {list(value.shape)}, the bias {list(shape)}",
                str(self.folder),
                "merge it into the LLM it was trained on",
            )
        self._left.remove(saved)
        return value

    def check_all_used(self) -> None:
        """Refuses a merge that would lose part of the adapter."""
        if self._left:
            shown = ", ".join(sorted(self._left)[:3])
            raise CheckpointError(
                f"{len(self._left)} adapter tensors match no weight of the LLM: {shown}",
                str(self.folder),
                "merge it into the LLM it was trained on",
            )


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    wrong = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        wrong.append(f"peft_type {config['peft_type']}")
    if wrong or "lora_alpha" not in config:
        raise CheckpointError(
            f"this adapter cannot be used: {', '.join(wrong) or 'no lora_alpha'}",
            str(folder),
            "only plain LoRA is handled",
        )
