"""A model of any format in memory, without a folder of ours in between."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmrun.errors import CheckpointError
from vlmrun.formats import modules as skeleton
from vlmrun.formats.base import PREPROCESSOR, Model
from vlmrun.formats.native import write_files
from vlmrun.model.parts import Loaded
from vlmrun.model.tokenizers import load_tokenizer
from vlmrun.model.towers.base import Tower
from vlmrun.model.towers.hf import HuggingFaceTower
from vlmrun.model.vlm import VLM


def realise(model: Model, *, dtype: torch.dtype, attention: str) -> Loaded:
    """Fills the modules tensor by tensor.

    Raises:
        CheckpointError: when a part is missing, or the model has an adapter.
    """
    config = model.config
    if config is None or not (model.has("llm") and model.has("tower")) or model.has("adapter"):
        raise CheckpointError(
            "this is no whole model", "", "vlmrun convert SRC DST --to native --base DIR makes one of its pieces"
        )
    skeleton.check(model)
    modules: dict[str, Any] = skeleton.modules(model, dtype=dtype, attention=attention)
    for part, module in modules.items():
        _fill(module, model, part)
    tower = modules["tower"]
    if PREPROCESSOR in model.json and isinstance(tower, HuggingFaceTower):
        tower.prepare(None, model.json[PREPROCESSOR])
    vlm = VLM(modules["llm"], tower, modules["connector"], config.tiles).eval()
    loaded = Loaded(vlm, tokenizer(model), config, tower.preprocessor, dict.fromkeys(_SOURCES))
    loaded.template = model.description.get("template")
    return loaded


_SOURCES = ("llm", "tokenizer", "tower", "connector", "adapter")


def tokenizer(model: Model) -> Any:
    """The tokenizer that the model's files describe."""
    with tempfile.TemporaryDirectory() as name:
        places = [*model.files, *(place for place in model.json if "tokenizer" in place)]
        write_files(model, Path(name), {place: Path(place).name for place in places})
        try:
            return load_tokenizer(Path(name), **_roles(model))
        except CheckpointError as error:  # of where its files are, not of their copies
            home = next((str(source.parent) for source in model.files.values()), "")
            raise CheckpointError([replace(p, where=p.where.replace(name, home)) for p in error.problems]) from error


def tokenizer_is_as_its_files(model: Model) -> bool:
    """Whether plain transformers, too, gets this tokenizer from the files."""
    return not any(_roles(model).values()) and "llm/tokenizer.json" in model.files


def _roles(model: Model) -> dict[str, Any]:
    arguments = {} if model.config is None else model.config.llm.arguments
    return {"legacy": arguments.get("legacy"), "tokens": arguments.get("tokens")}


@torch.no_grad()
def _fill(module: nn.Module, model: Model, part: str) -> None:
    rename = module.saved_name if isinstance(module, Tower) else str
    given = model.part(part)
    for name, value in module.state_dict().items():
        if rename(name) in given:
            value.copy_(given[rename(name)].load())
