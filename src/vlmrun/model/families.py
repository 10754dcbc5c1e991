"""LLM families that transformers holds under another name than their files do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmrun.arch.families import find
from vlmrun.model import pretrained


def read_config(folder: Path) -> Any:
    """The config that a folder of weights is loaded with.

    Raises:
        CheckpointError: when transformers does not know the family and nothing here replaces it.
    """
    from transformers import AutoConfig

    values = pretrained.read_json(folder / "config.json", "the folder is not that of a model")
    if find(str(values.get("model_type"))).held_as is not None:
        return from_values(values)
    where = str(folder / "config.json")
    with pretrained.quietly(), pretrained.read_by_others(where, "the model", "this family is not known"):
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def from_values(values: dict[str, Any]) -> Any:
    """A config of transformers from the values of a config.json, in the family it is held as."""
    from transformers import AutoConfig

    held_as = find(str(values["model_type"])).held_as
    values = dict(values) if held_as is None else held_as(values)
    return AutoConfig.for_model(str(values.pop("model_type")), **values)
