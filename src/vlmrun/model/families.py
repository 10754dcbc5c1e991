"""LLM families as transformers has them: under another name than their files do, or without what a VLM needs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from vlmrun.arch.families import find
from vlmrun.errors import ConfigError
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


def require(config: Any, attention: str, where: str) -> None:
    """Refuses an LLM that cannot be a part of a VLM, or knows no such attention.

    Raises:
        ConfigError: naming what is missing.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    name = config.model_type
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if "vision_config" in config.to_dict():
        raise ConfigError(
            f"{name} is a whole VLM, not a language model alone",
            where,
            "take the language model out of it: vlmrun convert FOLDER OUT --to hf",
        )
    if kind is None:
        raise ConfigError(f"transformers has no causal language model of the type {name!r}", where, _ANOTHER)
    for method, doing in (("forward", "reads"), ("prepare_inputs_for_generation", "continues")):
        if "inputs_embeds" not in inspect.signature(getattr(kind, method)).parameters:
            raise ConfigError(
                f"{kind.__name__} of transformers {doing} token ids only, no embeddings (inputs_embeds)",
                where,
                _ANOTHER,
            )
    refuse = find(name).refuse
    if refuse is not None and (why := refuse(config.to_dict())) is not None:
        raise ConfigError(f"{name} cannot be a part of a VLM: {why}", where, _ANOTHER)
    if attention == "sdpa" and not kind._supports_sdpa:
        raise ConfigError(
            f"{kind.__name__} of transformers knows no attention {attention!r}",
            "hardware.attention",
            "hardware.attention=eager",
        )


_ANOTHER = "choose another LLM; docs/guides/todays-models.md lists families"
