"""Any vision model of timm: transformers such as EVA02-CLIP, and convolutional networks such as EfficientNet."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vlmrun.arch import towers as arch
from vlmrun.arch.towers import positions
from vlmrun.config.paths import locate, read_config
from vlmrun.errors import CheckpointError, ConfigError, suggest
from vlmrun.model.pretrained import read_by_others, read_json
from vlmrun.model.towers.base import Tower
from vlmrun.model.towers.hf import PREPROCESSOR
from vlmrun.model.towers.without_torchvision import stand_in

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_USUAL = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = (*_USUAL, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class Timm(Tower):
    """Features of a timm model, cut off behind the deepest requested layer.

    What is behind that layer is neither loaded nor saved. `layers` count blocks of a transformer from 1, stages of a
    convolutional network likewise; negative numbers count as LLaVA's select layer does: -1 is the last block's output
    before any final norm, -2 the one before. Class and register tokens are left out.

    Args:
        path: a folder in timm's hub form: `config.json` with `architecture`, and its weights.
        config: instead of `path`: `architecture` and `model_args`, with random weights.
        image_size: edge of the images, when it is not the one of the weights.

    Source:
        EVA02-CLIP-L-336 with layers [-2] is what BAAI-DCAI/Bunny@08273ac runs: blocks 1 to 23, no norm, no class token.
    """

    ARITHMETIC = arch.Timm

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = (-2,),
        image_size: int | None = None,
        *,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ConfigError("a tower takes either `path` or `config`", "model.tower", "give exactly one of them")
        self.source = None if path is None else locate(path)
        self.config = read_config(path) if path is not None else dict(config or {})
        self.image_size = image_size or _input_size(self.config)
        self.model = _create(self.config, self.image_size)
        self.n_layers = len(self.model.feature_info)
        self._indices: list[int] = []
        self._dtype = dtype
        if layers is not None:
            self.choose_layers(layers)

    def choose_layers(self, layers: Sequence[int]) -> None:
        """Cuts the model off behind the deepest of them, and loads what remains."""
        assert not self._indices, "layers are chosen once: the rest of the model is gone"
        self.layers = positions(layers, self.n_layers, first=self.ARITHMETIC.FIRST)
        self._indices = [layer - 1 for layer in self.layers]
        self.model.prune_intermediate_layers(sorted(set(self._indices)), prune_norm=True, prune_head=True)
        if self.source is not None:
            _fill(self.model, self.source)
        self.model.to(self._dtype).eval()
        self.preprocessor = _preprocessor(self.model.pretrained_cfg, self.config, self.image_size)
        if self.source is not None and (self.source / PREPROCESSOR).is_file():
            self.preprocessor = read_json(self.source / PREPROCESSOR, "fetch the model again") | self._squares()
        if self.source is not None and not any((self.source / name).is_file() for name in _USUAL):
            self.source = None  # names that no other program reads: saved from memory, under the usual one
        with torch.no_grad():
            blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=self._dtype)
            found = self(blank)
        counts = {feature.shape[1] for feature in found}
        if len(counts) > 1:
            raise ConfigError(
                f"layers {list(layers)} have maps of different sizes: {sorted(counts)} patches",
                "model.tower.layers",
                "one stage of a convolutional network, or several of one size",
            )
        self.n_patches = counts.pop()
        self.hidden_dim = sum(feature.shape[2] for feature in found)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of every requested layer; a map's rows one after another."""
        wanted = sorted(set(self._indices))
        maps = self.model.forward_intermediates(
            pixels, indices=wanted, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        # each [N, Dv, Y, X] -> [N, Y X, Dv]
        found = {index: each.flatten(2).transpose(1, 2) for index, each in zip(wanted, maps, strict=True)}
        return [found[index] for index in self._indices]

    def config_dict(self) -> dict[str, Any]:
        """timm's own description."""
        return {"num_classes": 0} | self.config

    def saved_name(self, name: str) -> str:
        """Drops our own attribute's prefix."""
        return name.removeprefix("model.")

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """As timm does it."""
        self.model.set_grad_checkpointing(enabled)

    def train(self, mode: bool = True) -> Timm:
        """Batch norms keep the statistics they were pretrained with: batches here are small, and differ by rank."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _squares(self) -> dict[str, Any]:
        edges = {"height": self.image_size, "width": self.image_size}
        return {"size": {"shortest_edge": self.image_size}, "crop_size": edges, "do_center_crop": True}


def _create(config: dict[str, Any], image_size: int) -> Any:
    """The model with random weights."""
    timm = _import_timm()
    name = str(config.get("architecture", ""))
    if not timm.is_model(name):
        fix = suggest(name, timm.list_models(), noun="timm models")
        raise ConfigError(f"timm has no model {name!r}", "model.tower", fix if len(fix) < 200 else "timm.list_models()")
    arguments = dict(config.get("model_args") or {})
    if "img_size" in _accepted(timm, name):
        arguments["img_size"] = image_size
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def _accepted(timm: Any, name: str) -> set[str]:
    """Arguments of the classes of the module that makes it: only some models are built for one size of images."""
    module = sys.modules[timm.model_entrypoint(name).__module__]
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    models = [kind for kind in classes if hasattr(kind, "forward_intermediates")]
    return {argument for kind in models for argument in inspect.signature(kind).parameters}


def _import_timm() -> Any:
    if find_spec("timm") is None:
        raise ConfigError(
            "this tower needs timm, which is not installed", "model.tower", "pip install 'vlmrun-trainer[towers]'"
        )
    try:
        with stand_in():
            import timm
    except RuntimeError as error:
        raise ConfigError(
            f"timm cannot be imported: {error}",
            "model.tower",
            "torchvision does not go with this torch: install the matching one, or pip uninstall torchvision",
        ) from error
    return timm


def _fill(model: Any, folder: Path) -> None:
    """Loads the weights; those behind the deepest requested layer are left out, all others must be there."""
    state = _read(folder)
    own = model.state_dict()
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not own.keys() <= state.keys():
        state = convert(state, model)
    missing = sorted(own.keys() - state.keys())
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights are missing, first {missing[0]!r}",
            str(folder),
            "the folder is incomplete or of another model: fetch it again",
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}",
                str(folder),
                "give the architecture and image_size that belong to these weights",
            )
    model.load_state_dict({name: state[name] for name in own})


def _read(folder: Path) -> dict[str, torch.Tensor]:
    for name in _WEIGHTS:
        file = folder / name
        if file.is_file():
            with read_by_others(str(file), "the file", "fetch the model again"):
                if file.suffix == ".safetensors":
                    return load_file(file)
                return dict(torch.load(file, map_location="cpu", weights_only=True))
    raise CheckpointError(f"no weights: none of {', '.join(_WEIGHTS)}", str(folder), "fetch the model again")


def _input_size(config: dict[str, Any]) -> int:
    """From the folder's config, or what timm's own table says of the architecture."""
    told = (config.get("pretrained_cfg") or {}).get("input_size")
    if told is None:
        timm = _import_timm()
        table = timm.models.get_pretrained_cfg(str(config.get("architecture", ""))) or None
        told = (3, 224, 224) if table is None else table.input_size
    return int(told[-1])


def _preprocessor(table: dict[str, Any], config: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Statistics of the weights. The shorter edge is resized to the size itself: timm's wider resize is for tests."""
    values = dict(table) | dict(config.get("pretrained_cfg") or {})
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": _RESAMPLE.get(str(values.get("interpolation")), 3),
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(values.get("mean") or (0.5,) * 3),
        "image_std": list(values.get("std") or (0.5,) * 3),
        "do_convert_rgb": True,
    }
