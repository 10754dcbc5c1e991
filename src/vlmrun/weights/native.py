"""vlmrun's own weights folder: three parts and perhaps an adapter, with all that is needed to load them again.

model.json   llm/   tower/   connector/   adapter/
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmrun import artifact
from vlmrun.config import derived
from vlmrun.config.schema import ModelConfig, Target
from vlmrun.errors import CheckpointError
from vlmrun.model.parts import Loaded
from vlmrun.model.pretrained import read_json
from vlmrun.model.tune import has_adapter
from vlmrun.names import MODEL, WEIGHTS
from vlmrun.weights import adapter as adapters
from vlmrun.weights import folder as files
from vlmrun.weights.blocks import Shape
from vlmrun.weights.reader import dtype_name
from vlmrun.weights.writer import Writer

FORMAT = "vlmrun-1"
PREPROCESSOR = "preprocessor_config.json"
_LLM_CONFIG = ("config.json", "generation_config.json")

Tensors = Iterator[tuple[str, torch.Tensor]]


def weights_folder(folder: Path) -> Path:
    """The weights folder of an artifact, or the folder itself when it is one."""
    folder = Path(folder)
    for candidate in (folder / WEIGHTS, folder):
        if (candidate / MODEL).is_file():
            return candidate
    raise CheckpointError(
        f"there is no model here ({MODEL} is missing)",
        str(folder),
        "give the folder of a finished training, merge or average stage: `vlmrun ls` lists them",
    )


def describe(folder: Path) -> dict[str, Any]:
    """The `model.json` of an artifact or a weights folder.

    Raises:
        CheckpointError: when there is none, or it is of another version.
    """
    path = weights_folder(folder) / MODEL
    description = read_json(path, "the model is incomplete: make the stage again")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"unknown format {description.get('format')!r}",
            str(path),
            f"this version reads {FORMAT}: use the one that wrote it",
        )
    return description


def save(  # noqa: PLR0913 - all that a weights folder holds
    folder: Path,
    loaded: Loaded,
    *,
    template: dict[str, Any],
    image_aspect: str,
    tensors: Mapping[str, Tensors],
    image_background: str | None = None,
    adapter: tuple[dict[str, Any], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Writes a weights folder whole, or leaves none.

    Args:
        folder: the weights folder itself.
        tensors: for every part that changed (llm, tower, connector): its parameters, named as in the part or in the
            whole VLM, gathered if they were sharded. A part that is not here is linked or copied from
            `loaded.sources`, or, made at random and never trained, taken from the model in memory.
        adapter: what `model.tune.adapter_config` says and the LoRA tensors. Without it, an adapter that was loaded
            goes along unchanged.

    Raises:
        CheckpointError: when the disk is full or cannot be written.
    """
    with files.building(Path(folder)) as new:
        _save_llm(new / "llm", loaded, tensors.get("llm"))
        _save_tower(new / "tower", loaded, tensors.get("tower"))
        _save_weights(new / "connector", loaded, "connector", tensors.get("connector"))
        kept = loaded.sources.get("adapter")
        if adapter is not None:
            adapters.write(new / "adapter", *adapter)
        elif kept is not None:
            files.place_tree(kept, new / "adapter")
        description = {
            "format": FORMAT,
            "model": relative(loaded.model).model_dump(by_alias=True),
            "template": template,
            "image_aspect": image_aspect,
            # behind transparent images; null: images are seen as upstream's code sees them
            "image_background": image_background,
            "adapter": "adapter" if (new / "adapter").is_dir() else None,
            # The LLM beside it is the full-precision one; the adapter was trained on it in this form.
            "quantized": loaded.quantized,
            "dtype": dtype_name(_first(loaded.vlm.connector, loaded.vlm.llm).dtype),
        }
        artifact.write_json(new / MODEL, description)


def _first(*modules: nn.Module) -> torch.Tensor:
    """Any parameter of the connector; an identity has none, and computes in the LLM's type."""
    return next(parameter for module in modules for parameter in module.parameters())


def relative(model: ModelConfig) -> ModelConfig:
    """The same description with the parts where a weights folder has them."""
    connector, _ = derived.connector_weights(model.connector)  # its weights lie beside it now
    parts = {"llm": _at(model.llm, "llm"), "tower": _at(model.tower, "tower"), "connector": connector}
    return model.model_copy(update=parts)


def _at(target: Target, path: str) -> Target:
    kept = {key: value for key, value in target.arguments.items() if key not in ("path", "config", "tokenizer")}
    return Target.model_validate({"_target_": target.target, "path": path, **kept})


def _save_llm(folder: Path, loaded: Loaded, tensors: Tensors | None) -> None:
    source = loaded.sources["llm"]
    _save_weights(folder, loaded, "llm", tensors)
    if tensors is None and source is not None:
        files.place_named(source, folder, _LLM_CONFIG)
    else:
        llm: Any = loaded.vlm.llm
        if has_adapter(llm):
            llm = llm.get_base_model()
        artifact.write_json(folder / "config.json", _config_values(llm))
        artifact.write_json(folder / "generation_config.json", json.loads(llm.generation_config.to_json_string()))
    tokenizer_source = loaded.sources["tokenizer"]
    if tokenizer_source is None:  # it is another than its files were: converted, with other roles or new tokens
        loaded.tokenizer.save_pretrained(str(folder))
    else:
        files.place_named(tokenizer_source, folder, files.TOKENIZER)


def _save_tower(folder: Path, loaded: Loaded, tensors: Tensors | None) -> None:
    source = loaded.sources["tower"]
    _save_weights(folder, loaded, "tower", tensors)
    if tensors is None and source is not None:
        files.place_named(source, folder, ("config.json",))
    else:
        artifact.write_json(folder / "config.json", loaded.vlm.tower.config_dict())
    if source is not None:
        files.place_named(source, folder, (PREPROCESSOR,))
    if not (folder / PREPROCESSOR).is_file():
        artifact.write_json(folder / PREPROCESSOR, loaded.preprocessor)


def _save_weights(folder: Path, loaded: Loaded, part: str, tensors: Tensors | None) -> None:
    source = loaded.sources[part]
    if tensors is None and source is not None:
        files.place_weights(source, folder)
        return
    module: nn.Module = getattr(loaded.vlm, part)
    rename = loaded.vlm.tower.saved_name if part == "tower" else str
    if tensors is None:
        assert not any(hasattr(p, "ds_id") for p in module.parameters()), f"give the gathered tensors of {part}"
        tensors = iter(list(module.named_parameters()))
    buffers = list(_persistent_buffers(module))
    expected = _parameter_types(module) | {name: (b.dtype, tuple(b.shape)) for name, b in buffers}
    with Writer(folder, {rename(name): kind for name, kind in expected.items()}, at_once=2) as writer:
        for given, tensor in itertools.chain(tensors, buffers):
            name = _bare(given.removeprefix(f"{part}."))
            if name is None:
                continue
            shape = expected.get(name, (None, None))[1]
            # A sharded export that forgot to gather looks right until it is loaded (platform T17).
            assert shape == tuple(tensor.shape), f"{part}.{name} has shape {tuple(tensor.shape)}, expected {shape}"
            writer.write(rename(name), [tensor])


def _parameter_types(module: nn.Module) -> dict[str, tuple[torch.dtype, Shape]]:
    found = ((_bare(name), p) for name, p in module.named_parameters())
    return {name: (p.dtype, _full_shape(p)) for name, p in found if name is not None}


def _bare(name: str) -> str | None:
    """A parameter's name as if PEFT did not wrap the LLM; None for the adapter's own."""
    if adapters.is_adapter_name(name):
        return None
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter that tensor parallelism, or ZeRO-3, may have cut."""
    return tuple(getattr(parameter, "whole_shape", getattr(parameter, "ds_shape", parameter.shape)))


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    names = dict(module.named_buffers())
    state = module.state_dict().items()
    return ((bare, tensor) for name, tensor in state if name in names and (bare := _bare(name)) is not None)


def _config_values(llm: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(llm.config.to_json_string())
    return values | {"architectures": [type(llm).__name__]}
