"""LoRA adapters on disk, and the arithmetic that folds them into weights."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlmrun import artifact, endings
from vlmrun.errors import CheckpointError, Problem
from vlmrun.model import quantize
from vlmrun.model.pretrained import read_json
from vlmrun.weights.blocks import Shape
from vlmrun.weights.reader import DTYPES, Reader

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ANOTHER = "merge it into the LLM it was trained on"
# What PEFT puts behind a layer's name: a change of its weight as B A, of an embedding, and DoRA's lengths.
_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def saved_name(name: str) -> str:
    """Name in the adapter's file of a parameter of a PEFT-wrapped LLM."""
    bare = name.replace(".default.", ".").replace(".base_layer.bias", ".bias")
    return bare.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers that tensors of an adapter's file change, by their whole names, as `target_modules` may list them."""
    bare = [(name.removeprefix(_PREFIX), ending) for name in names for ending in _ENDINGS if name.endswith(ending)]
    return sorted({name.removesuffix(ending) for name, ending in bare})


def is_adapter_name(name: str) -> bool:
    """Whether a parameter of a PEFT-wrapped LLM belongs to the adapter."""
    return "lora_" in name


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Writes a PEFT folder; names may be those of the parameters or those of the file."""
    tensors = {saved_name(name): tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    with artifact.writing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    artifact.write_json(folder / CONFIG, config)


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on: weights as they are in the `llm` folder, some of them quantized and back.

    Args:
        rounded: names of the weights that were quantized; each is needed whole to be rounded.
    """

    rounded: frozenset[str] = frozenset()
    dtype: torch.dtype = torch.float32
    kind: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The value that training computed with."""
        return quantize.rounded(weight, self.dtype, self.kind) if name in self.rounded else weight


def trained_base(weights: Path, description: dict[str, Any]) -> Base:
    """What a saved model's adapter was trained on.

    Raises:
        CheckpointError: when bitsandbytes is missing, or the folder names its weights otherwise than the model does.
    """
    kind = description.get("quantized")
    if kind is None:
        return Base()
    quantize.check(kind)
    names, dtype = quantize.layers(weights / "llm", kind), DTYPES[description["dtype"]]
    unknown = sorted(names - set(Reader(weights / "llm").names()))
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights that were quantized for training are not in the folder: {', '.join(unknown[:3])}",
            str(weights / "llm"),
            "an LLM whose files name weights otherwise than its modules cannot be merged",
        )
    return Base(names, dtype, kind)


class Adapter:
    """A PEFT LoRA folder as a function from the rows of a base weight to what is added to them.

    LoRA adds s B A with s = alpha / r (alpha / sqrt(r) for rank-stabilised LoRA, arXiv:2312.03732; `rank_pattern` and
    `alpha_pattern` per layer), in fp32. DoRA (arXiv:2402.09353) then scales every row to the length that was trained.
    Tensors that PEFT keeps whole (`modules_to_save`, trained biases) take the place of the base's.

    Raises:
        CheckpointError: when the folder is damaged or holds a kind of adapter that this arithmetic does not cover.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / CONFIG, "the adapter is incomplete: make the stage again")
        self._reader = Reader(folder)
        _check_kind(self.config, folder)
        self._layers: dict[str, dict[str, str]] = {}  # weight -> role -> tensor
        self._whole: dict[str, str] = {}  # weight or bias -> tensor
        self._held = threading.local()  # every thread works through a weight of its own
        for name in self._reader.names():
            bare = name.removeprefix(_PREFIX)
            ending = next((ending for ending in _ENDINGS if bare.endswith(ending)), None)
            if ending is not None:
                self._layers.setdefault(bare.removesuffix(ending) + ".weight", {})[_ENDINGS[ending]] = name
            else:
                # PEFT keeps a copy of an adapted head or embedding as `base_layer`: that is what it was trained on.
                self._whole[bare.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = name

    @property
    def plain(self) -> bool:
        """Whether it is of the kind that our own trainer makes: one rank, one alpha, nothing but LoRA and biases."""
        others = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
        embeds = any("lora_embedding" in name for name in self._reader.names())
        whole = any(not name.endswith(".bias") for name in self._whole)
        return not (embeds or whole or any(self.config.get(key) for key in others))

    def state(self) -> dict[str, Tensor]:
        """All tensors, under their names in the file."""
        return {name: self._reader.get(name) for name in self._reader.names()}

    def touches(self, name: str) -> bool:
        """Whether it changes this tensor of the base."""
        return name in self._layers or name in self._whole

    def problems(self, base: Mapping[str, Shape], *, tied: bool = False) -> list[Problem]:
        """Everything of it that finds no place in a base, so that a merge would lose it or go wrong.

        Args:
            base: shapes by name.
            tied: the base's output head is its input embedding.
        """
        names = base.keys()
        lost = sorted(t for w, roles in self._layers.items() if w not in names for t in roles.values())
        lost += sorted(tensor for weight, tensor in self._whole.items() if weight not in names)
        found = []
        if lost:
            shown = ", ".join(lost[:3])
            found.append(f"{len(lost)} adapter tensors match no weight of the LLM: {shown}")
        for name in sorted(names & (self._layers.keys() | self._whole.keys())):
            found += self._misfits(name, base[name])
            if tied and ("embed" in name or "wte" in name):
                found.append(f"{name} is the output head too, and the adapter changes it as one of the two only")
        return [Problem(what, str(self.folder), _ANOTHER) for what in found]

    def held(self, name: str, weight: Tensor, start: int = 0) -> Tensor:
        """The rows that its own changes start from: those of a tensor that it holds whole, or the base's."""
        if name not in self._whole:
            return weight
        width = weight.shape[1]
        return self._reader.flat(self._whole[name], start * width, (start + len(weight)) * width).view_as(weight)

    def delta(self, name: str, weight: Tensor, start: int = 0, *, halves: bool = False) -> Tensor | None:
        """What LoRA adds to rows of a base weight, in fp32; None when there is none for it.

        Args:
            weight: the rows [R, D], from row `start` on.
            halves: round A and B to fp16 first, as PEFT holds them beside a model in fp16.

        Raises:
            CheckpointError: when a tensor of it is missing or has another shape.
        """
        stop = start + len(weight)
        if name not in self._layers:
            return None
        left, right, scale = self._product(name, start, stop, halves)
        added = (left @ right).mul_(scale)
        if "magnitude" not in self._layers[name]:
            return added
        lengths: Tensor = self._reader.get(self._layers[name]["magnitude"]).float()[start:stop]
        turned = weight.float() + added
        change: Tensor = turned * (lengths / turned.norm(dim=1)).unsqueeze(1) - weight.float()
        return change

    def add(self, total: Tensor, name: str, start: int, times: float) -> bool:
        """Adds `times` that to rows [R, D] in fp32, in one product; False, for DoRA, which must know it first."""
        if "magnitude" in self._layers.get(name, {}):
            return False
        if name in self._layers:
            left, right, scale = self._product(name, start, start + len(total))
            total.addmm_(left, right, alpha=scale * times)
        return True

    def _product(self, name: str, start: int, stop: int, halves: bool = False) -> tuple[Tensor, Tensor, float]:
        """Two matrices and a number whose product is what is added to these rows."""
        up, down = self._pair(name, halves)
        scale = self._scale(name.removesuffix(".weight"), down.shape[0])
        if self._is_transposed(name):
            return down.T[start:stop], up.T, scale
        return up[start:stop], down, scale

    def _pair(self, name: str, halves: bool) -> tuple[Tensor, Tensor]:
        """B and A of a weight, kept until another one is asked for."""
        if getattr(self._held, "of", None) != (name, halves):
            found = (self._reader.get(self._tensor(name, role)) for role in ("B", "A"))
            up, down = (tensor.half().float() if halves else tensor.float() for tensor in found)
            self._held.of, self._held.pair = (name, halves), (up, down)
        pair: tuple[Tensor, Tensor] = self._held.pair
        return pair

    def _tensor(self, name: str, role: str) -> str:
        roles = self._layers[name]
        if role not in roles:
            raise CheckpointError(f"half of the adapter of {name!r} is missing: {role}", str(self.folder), _ANOTHER)
        return roles[role]

    def _is_transposed(self, name: str) -> bool:
        """Whether the weight's rows are inputs: of an embedding, or of a layer that keeps its weight so."""
        return "embedding" in self._layers[name].get("A", "") or bool(self.config.get("fan_in_fan_out"))

    def _scale(self, layer: str, rank: int) -> float:
        alpha = endings.value(self.config.get("alpha_pattern") or {}, layer, self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _misfits(self, name: str, shape: Shape) -> Iterable[str]:
        if name in self._whole:
            own = self._reader.shape(self._whole[name])
            if own != shape:
                yield f"the adapter of {name!r} does not fit: {list(own)}, the weight {list(shape)}"
        roles = self._layers.get(name)
        if roles is None:
            return
        if not {"A", "B"} <= roles.keys():
            yield f"half of the adapter of {name!r} is missing: {', '.join(sorted({'A', 'B'} - roles.keys()))}"
            return
        down, up = (self._reader.shape(roles[role]) for role in ("A", "B"))
        wanted = shape[::-1] if self._is_transposed(name) else shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or (up[0], down[1]) != wanted:
            yield f"the adapter of {name!r} does not fit: B {list(up)}, A {list(down)}, weight {list(shape)}"
        if "magnitude" in roles and (self._is_transposed(name) or self._reader.shape(roles["magnitude"]) != shape[:1]):
            yield f"the DoRA lengths of {name!r} are not one for each row"


def fold(
    name: str, rows: Tensor, start: int, used: Sequence[tuple[Adapter, float]], arithmetic: str = "fp32"
) -> Tensor:
    """rows + sum(w change), from row `start` of a weight on.

    Args:
        rows: [R, D]; of a vector R single elements.
        used: adapters that touch this weight, with their weights.
        arithmetic: `fp32`, or `fp16` as the original scripts: weights, A and B, change and sum each rounded to fp16.
            Source: huggingface/peft@v0.9.0:src/peft/tuners/lora/layer.py (Linear.merge on a CPU)
    """
    halves = arithmetic == "fp16"
    dtype = torch.float16 if halves else torch.float32
    alone = len(used) == 1 and used[0][1] == 1.0
    total = rows.to(dtype, copy=True)
    for adapter, weight in used:
        own = adapter.held(name, rows, start)
        if own is not rows:
            own = own.to(dtype)
            total = own.clone() if alone else total + (weight * (own - rows.to(dtype))).to(dtype)
        if not halves and adapter.add(total, name, start, weight):
            continue
        change = adapter.delta(name, own.to(dtype), start, halves=halves)
        if change is not None:
            total = (change if alone else change.mul_(weight)).to(dtype).add_(total)
    return total


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    wrong = [key for key in ("layer_replication", "lora_bias", "trainable_token_indices") if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        wrong.append(f"peft_type {config['peft_type']}")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            wrong.append(f"{key} {patterns!r}")
        wrong += [f"{key}: {what}" for what in map(endings.fault, patterns) if what]
    if wrong or "lora_alpha" not in config:
        raise CheckpointError(
            f"this adapter cannot be used: {', '.join(wrong) or 'no lora_alpha'}",
            str(folder),
            "LoRA and DoRA are handled, with modules_to_save, rank_pattern and alpha_pattern",
        )
