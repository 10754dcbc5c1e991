"""What all formats share: a model on disk under internal names, read tensor by tensor when asked for.

Internal names are those of vlmrun's own folder: `llm.`, `tower.`, `connector.`, `adapter.` and, behind the dot, the
name in that part's files. A format knows how its own names and files become these and back; no two formats know each
other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from vlmrun.config.schema import ModelConfig
from vlmrun.errors import CheckpointError, Problem
from vlmrun.weights.lazy import Lazy
from vlmrun.weights.reader import dtype_name
from vlmrun.weights.writer import Writer

LLM_CONFIG, GENERATION = "llm/config.json", "llm/generation_config.json"
TOWER_CONFIG, PREPROCESSOR = "tower/config.json", "tower/preprocessor_config.json"
ADAPTER_CONFIG, ADAPTER = "adapter/adapter_config.json", "adapter_model"  # PEFT's names of its files
_SHOWN = 20

# Tensors in files of old that are no weights of the part: constants, and the half of CLIP that reads text.
_IGNORED = {
    "llm": re.compile(r"rotary_emb\.inv_freq$"),
    "tower": re.compile(r"^(text_model|visual_projection|text_projection)\.|^logit_(scale|bias)$|position_ids$"),
}


@dataclass
class Model:
    """A model, or some parts of one, on its way between two formats.

    Attributes:
        tensors: by internal name.
        description: what `model.json` of a native folder says; `model` is None when not all parts are known.
        json: configurations, by their place in a native folder.
        files: further files that travel along unchanged, by their place in a native folder.
        notes: what the user should know of this reading or writing.
        held: what must live as long as tensors are read, such as a temporary folder.
    """

    tensors: dict[str, Lazy]
    description: dict[str, Any]
    json: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    held: Any = None

    def part(self, name: str) -> dict[str, Lazy]:
        """The tensors of a part, under its own names."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}

    def has(self, name: str) -> bool:
        """Whether any tensor of the part is there."""
        return any(key.startswith(f"{name}.") for key in self.tensors)

    @property
    def config(self) -> ModelConfig | None:
        """The description of the parts; None when not all are known."""
        values = self.description.get("model")
        return None if values is None else ModelConfig.model_validate(values)


@dataclass(frozen=True)
class How:
    """What a conversion was given besides its two folders.

    Attributes:
        base: the LLM, or the model, that an adapter, a projector or a delta belongs to.
        tower: the vision tower, when the source names one that is not here.
        template: built-in template, for formats that do not say which.
        dtype: of all tensors; None: as they are.
        tp: tensor-parallel ranks of a Megatron folder.
        skip: names of linear layers that are not quantized (`bnb`).
        trusted: the digests of a folder were compared already, or only its description is asked for.
        pack: the tensors to write in place of one, by their names on disk.
        fits: what an adapter is written for: `hf_llava`, the whole model in plain transformers, or `llm`, the language
            model alone. None: the first that the model can be.
        adapter: whether a model's adapter is read; without it the model is as it was before.
    """

    base: Path | None = None
    tower: Path | None = None
    template: str | None = None
    dtype: torch.dtype | None = None
    tp: int = 1
    skip: tuple[str, ...] = ()
    trusted: bool = False
    pack: Callable[[str, Lazy], Mapping[str, Lazy]] | None = None
    fits: str | None = None
    adapter: bool = True


class Format(Protocol):
    """What a module of this package offers."""

    def detect(self, folder: Path) -> bool:
        """Whether the folder's content is of this format."""

    def read(self, folder: Path, how: How) -> Model:
        """Names, shapes and configurations; tensors follow when asked for."""

    def refuse(self, model: Model, how: How) -> list[Problem]:
        """Everything of the model that this format cannot express; a format that is only read refuses all."""


@runtime_checkable
class WrittenFormat(Format, Protocol):
    """A format that is written as well."""

    def write(self, model: Model, folder: Path, how: How) -> None:
        """Fills a folder that is there and empty."""


def without_adapter(model: Model) -> Model:
    """The model as it was before its adapter was trained."""
    tensors = {name: value for name, value in model.tensors.items() if not name.startswith("adapter.")}
    json = {place: values for place, values in model.json.items() if place != ADAPTER_CONFIG}
    description = model.description | {"adapter": None, "quantized": None}
    return replace(model, tensors=tensors, json=json, description=description)


def of_part(part: str, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """A part's own tensors under internal names."""
    return {f"{part}.{own_name(part, name)}": tensors[name] for name in weights_of(part, tensors)}


def weights_of(part: str, names: Iterable[str]) -> list[str]:
    """Of the names in a part's files, those of its weights."""
    ignored = _IGNORED.get(part)
    return [name for name in names if ignored is None or not ignored.search(name)]


def own_name(part: str, name: str) -> str:
    """A weight's name in its part, whichever of the two ways its file names it."""
    return name.removeprefix("vision_model.") if part == "tower" else name


Names = Sequence[tuple[str, str]]  # beginnings of internal names and of a format's own; the first that fits counts


def outward(names: Names, internal: str) -> str | None:
    """A format's own name; None when the table has no place for it."""
    return next((theirs + internal.removeprefix(ours) for ours, theirs in names if internal.startswith(ours)), None)


def inward(names: Names, foreign: str) -> str | None:
    """The internal name; None when the table has no place for it."""
    return next((ours + foreign.removeprefix(theirs) for ours, theirs in names if foreign.startswith(theirs)), None)


def renamed_in(names: Names, tensors: Mapping[str, Lazy], folder: Path) -> dict[str, Lazy]:
    """All tensors under internal names.

    Raises:
        CheckpointError: listing those that the table does not know.
    """
    found = {name: inward(names, name) for name in tensors}
    unknown = sorted(name for name, internal in found.items() if internal is None)
    if unknown:
        raise CheckpointError([Problem(f"unknown tensor {name}", str(folder), _KNOWN) for name in unknown[:_SHOWN]])
    return {str(found[name]): value for name, value in tensors.items()}


def renamed_out(names: Names, model: Model) -> Iterator[tuple[str, Lazy]]:
    """All tensors under a format's own names, which `refuse` has found to exist."""
    for internal, value in model.tensors.items():
        name = outward(names, internal)
        assert name is not None, internal
        yield name, value


def without_place(names: Names, model: Model, format: str) -> list[Problem]:
    """The tensors that a format has no name for."""
    lost = [name for name in model.tensors if outward(names, name) is None]
    return [Problem(f"{format} has no place for the tensor {name}", "", "choose another format") for name in lost]


_KNOWN = "name the format with --from if it was taken for another; otherwise the folder holds another kind of model"


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, Lazy]],
    how: How | None = None,
    *,
    name: str = "model",
    hashed: bool = False,
) -> dict[Path, str]:
    """Writes safetensors, in shards when they are many; no more than a few rows are in memory.

    Args:
        name: of the file.
        hashed: take digests meanwhile.

    Returns:
        The digest of every file, for `sidecar.write`; nothing without `hashed`.
    """
    written = dict(tensors)
    if how is not None and how.pack is not None:
        written = {each: value for key, tensor in written.items() for each, value in how.pack(key, tensor).items()}
    types = {key: (value.dtype, value.shape) for key, value in written.items()}
    with Writer(folder, types, name=name, hashed=hashed) as writer:
        for key, value in written.items():
            writer.write(key, value.pieces())
    return writer.digests


def cast(model: Model, dtype: torch.dtype | None) -> Model:
    """The same model in another type; its configurations say so."""
    if dtype is None:
        return model
    tensors = {key: value.to(dtype) for key, value in model.tensors.items()}
    json = {
        place: values | {"dtype": str(dtype).removeprefix("torch.")} if place in (LLM_CONFIG, TOWER_CONFIG) else values
        for place, values in model.json.items()
    }
    description = model.description | {"dtype": dtype_name(dtype)}
    return replace(model, tensors=tensors, json=json, description=description)
