"""bitsandbytes' 4 and 8 bits, written as transformers writes them: linear layers packed, the rest as it is.

A language model becomes a plain folder, a whole model a Llava one. Both are read again as what the packed layers
compute with (`bits`), so going there and back loses what the bits cannot hold, and nothing the second time.

`skip` names layers that stay as they are, by their last name or any beginning of their whole name. Without it the
output head, tower and connector stay. MiniCPM-V's published recipe skips out_proj, kv_proj, lm_head.

Source: OpenBMB/MiniCPM-V@e88f828 quantize/bnb_quantize.py; transformers 5.23 quantizers/quantizers_utils.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vlmrun import artifact
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import bitsandbytes as bits
from vlmrun.formats import hf, hf_llava, modules
from vlmrun.formats.base import How, Model, outward
from vlmrun.hardware import packages
from vlmrun.model.pretrained import read_json
from vlmrun.weights.lazy import Lazy

_SKIPPED = ("lm_head", "tower", "connector")
_BLOCK = 64  # 4 bits: weights that share a scale; a row must be whole blocks (model/quantize.py)


@dataclass(frozen=True)
class Packed:
    """The format with this many bits."""

    bits: int

    def detect(self, folder: Path) -> bool:
        """Never: such a folder is one of Hugging Face's, whose reader unpacks it."""
        return False

    def read(self, folder: Path, how: How) -> Model:
        """As the layout it is in."""
        model: Model = (hf_llava if hf_llava.detect(folder) else hf).read(folder, how)
        return model

    def refuse(self, model: Model, how: How) -> list[Problem]:
        """What the layout refuses; bitsandbytes must be there."""
        missing = [replace(problem, where="") for problem in packages.bitsandbytes("")]
        return missing or _layout(model).refuse(model, how)

    def write(self, model: Model, folder: Path, how: How) -> None:
        """The layout's files, with packed layers and a quantization_config."""
        chosen, left = _sorted_layers(model, how.skip or _SKIPPED, 1 if self.bits == 8 else _BLOCK)
        if not chosen:
            raise CheckpointError("no layer is left to be packed", "", "skip fewer layers")
        names = {_foreign(model, f"{name}.weight") for name in chosen}

        def pack(name: str, tensor: Lazy) -> dict[str, Lazy]:
            return bits.pack(name, tensor, self.bits) if name in names else {name: tensor}

        _layout(model).write(model, folder, replace(how, pack=pack))
        values = read_json(folder / "config.json", "")
        values["quantization_config"] = _settings(self.bits, [_module(model, name) for name in left], values)
        artifact.write_json(folder / "config.json", values)
        model.notes.append(f"{len(chosen)} linear layers are in {self.bits} bits, {len(left)} are left as they were")


FOUR, EIGHT = Packed(4), Packed(8)


def _layout(model: Model) -> Any:
    return hf_llava if model.has("tower") else hf


def _sorted_layers(model: Model, skip: tuple[str, ...], block: int) -> tuple[list[str], list[str]]:
    """Internal names of the linear layers that are packed, and of those that stay."""
    chosen, left = [], []
    for part, module in modules.on_meta(model).items():
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            internal = f"{part}.{module.saved_name(name) if part == 'tower' else name}"  # type: ignore[operator]
            stays = any(_matches(internal, each) for each in skip) or layer.in_features % block
            (left if stays else chosen).append(internal)
    return chosen, left


def _matches(name: str, skipped: str) -> bool:
    return f".{name}.".find(f".{skipped}.") >= 0


def _foreign(model: Model, internal: str) -> str:
    if model.has("tower"):
        return str(outward(hf_llava.NAMES, internal))
    return internal.removeprefix("llm.")


def _module(model: Model, internal: str) -> str:
    """Name of the layer in the model that transformers builds, which its skip list means."""
    if not model.has("tower"):
        return internal.removeprefix("llm.")
    return next(theirs + internal.removeprefix(ours) for ours, theirs in _MODULES if internal.startswith(ours))


_MODULES = (
    ("llm.lm_head", "lm_head"),
    ("llm.model.", "model.language_model."),
    ("tower.", "model.vision_tower."),
    ("connector.layers.0", "model.multi_modal_projector.linear_1"),
    ("connector.layers.2", "model.multi_modal_projector.linear_2"),
)


def _settings(n_bits: int, left: list[str], values: dict[str, Any]) -> dict[str, Any]:
    common = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": sorted(left), "llm_int8_threshold": 6.0}
    if n_bits == 8:
        return common | {"load_in_8bit": True, "load_in_4bit": False}
    dtype = values.get("dtype") or values.get("torch_dtype") or "float16"
    return common | {
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
    }
