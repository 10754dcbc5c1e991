"""What an adapter, a projector or a delta belongs to: the model that `--base` names."""

from __future__ import annotations

from pathlib import Path

from vlmrun.errors import CheckpointError
from vlmrun.formats import registry
from vlmrun.formats.base import LLM_CONFIG, How, Model


def model(how: How, wanted_by: Path) -> Model:
    """The whole base model, whatever its format.

    Raises:
        CheckpointError: when none was given, or it is itself a piece of one.
    """
    if how.base is None:
        raise CheckpointError(
            "this is a piece of a model: what it belongs to is not in the folder", str(wanted_by), "give --base DIR"
        )
    found = registry.read(how.base, How(tower=how.tower, template=how.template))
    if LLM_CONFIG not in found.json:
        raise CheckpointError("the base holds no LLM", str(how.base), "give the folder of an LLM or of a whole model")
    return found


def language_model(how: How, wanted_by: Path) -> Model:
    """The LLM of the base alone, with its files."""
    found = model(how, wanted_by)
    return Model(
        {name: value for name, value in found.tensors.items() if name.startswith("llm.")},
        {"model": None},
        {place: values for place, values in found.json.items() if place.startswith("llm/")},
        {place: path for place, path in found.files.items() if place.startswith("llm/")},
    )
