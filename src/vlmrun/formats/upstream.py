"""Folders of the training codes LLaVA, KoLLaVA, DenseConnector and Bunny.

One `config.json` holds the LLM's values and, among them, those of tower and connector (`upstream_config`). Beside it
lie all weights, or those of a connector alone (`mm_projector.bin`), or an adapter with what was trained in full beside
it (`non_lora_trainables.bin`); the latter two need `--base`. The vision tower's configuration is never there: it is
taken from the folder that `mm_vision_tower` names, and so are tensors of it that the checkpoint does not hold.

Source: the specification of the family, 5.1 to 5.3
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.arch.families import FAMILIES
from vlmrun.arch.families import find as find_family
from vlmrun.build import find
from vlmrun.config.paths import locate
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import manifest, pickles
from vlmrun.formats import upstream_config as config_of
from vlmrun.formats.added_rows import added_rows, refuse_rows
from vlmrun.formats.base import (
    ADAPTER,
    ADAPTER_CONFIG,
    GENERATION,
    LLM_CONFIG,
    PREPROCESSOR,
    TOWER_CONFIG,
    How,
    Model,
    Names,
    inward,
    of_part,
    outward,
    write_tensors,
)
from vlmrun.formats.base_model import language_model
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.formats.hf import PLACES, take_llm_files
from vlmrun.formats.llava_text import name_padding
from vlmrun.formats.native import write_files
from vlmrun.model.connectors.base import Connector
from vlmrun.model.pretrained import read_json
from vlmrun.weights.adapter import CONFIG
from vlmrun.weights.lazy import Lazy, made
from vlmrun.weights.pickle_file import read_pickle

PROJECTOR, BESIDE = "mm_projector.bin", "non_lora_trainables.bin"
# PEFT's, and the trainer's own, in front of the LLM's decoder
_WRAPPED = re.compile(rf"^(base_model\.)?(model\.(?=({'|'.join({row.decoder for row in FAMILIES.values()})})\.))?")
_TOWERS = ("vlmrun.model.towers.clip.Clip", "vlmrun.model.towers.siglip.Siglip")


def names(model: Model) -> Names:
    """Internal and upstream names, for this connector and LLM."""
    config = model.config
    assert config is not None
    stem = find_family(str(model.json[LLM_CONFIG].get("model_type"))).decoder
    table = find(config.connector, Connector, vision_dim=0, llm_dim=0).UPSTREAM
    bare = config.connector.arguments.get("depth") == 1  # `linear` has no number in its names
    pairs = [
        (f"connector.{ours}", f"{stem}.mm_projector.{theirs}")
        for theirs, ours in table.items()
        if bare or theirs not in ("weight", "bias")
    ]
    return (
        ("connector.image_newline", f"{stem}.image_newline"),
        *sorted(pairs, key=lambda pair: -len(pair[0])),
        ("tower.", f"{stem}.vision_tower.vision_tower.vision_model."),
        ("tower.", f"{stem}.vision_tower.vision_tower."),
        ("llm.", ""),
    )


@dataclass(frozen=True)
class Upstream:
    """The format of one project."""

    name: str

    @property
    def families(self) -> dict[str, str]:
        """Its `model_type` of an LLM's family; a family that is not there cannot be written."""
        return {name: row.upstream[self.name] for name, row in FAMILIES.items() if self.name in row.upstream}

    def detect(self, folder: Path) -> bool:
        """Whether config.json names a tower and a model type of this project."""
        values = config_of.read(folder)
        return (
            "mm_vision_tower" in values
            and values.get("model_type") in self.families.values()
            and ("mm_dense_connector_type" in values) == (self.name == "denseconnector")
        )

    def read(self, folder: Path, how: How) -> Model:
        """All weights, or a connector or an adapter and what they belong to."""
        found = manifest.read(folder, how)
        values = config_of.read(folder)
        model = manifest.start(found) if found else config_of.described(values, how)
        given = dict(model.json)
        base = None if _is_whole(folder) else language_model(how, folder)
        if base is None:
            model.json[LLM_CONFIG] = given.get(LLM_CONFIG) or config_of.language_model(values)
            take_llm_files(model, folder)
        else:
            model.json |= base.json
            model.files |= base.files
        tower = _tower(values, folder, how, model)
        model.json |= given
        model.tensors = {} if base is None else base.tensors
        own = self._weights(model, folder)
        if base is not None:
            refuse_rows(own, base, folder)
        model.tensors |= tower | own
        model.description.setdefault("dtype", config_of.dtype_of(model))
        if not found:
            name_padding(model)
        return model

    def _weights(self, model: Model, folder: Path) -> dict[str, Lazy]:
        table = names(model)
        if _is_whole(folder):
            return _renamed(table, tensors_of(folder))
        if not (folder / CONFIG).is_file():
            return _renamed(table, _loose(folder / PROJECTOR))
        model.json[ADAPTER_CONFIG] = read_json(folder / CONFIG, "fetch the adapter again")
        model.description["adapter"] = "adapter"
        return of_part("adapter", tensors_of(folder)) | _renamed(table, _loose(folder / BESIDE))

    def refuse(self, model: Model, how: How) -> list[Problem]:
        """What this project's code does not know."""
        config = model.config
        if config is None or not (model.has("llm") and model.has("tower")):
            return [Problem("there is no whole model here", "", "give --base")]
        found = []
        family = model.json[LLM_CONFIG].get("model_type")
        if family not in self.families:
            found.append(self._cannot(f"LLM of the family {family} (it knows {', '.join(self.families)})"))
        if config_of.projector_type(config) is None:
            found.append(self._cannot(f"connector {config.connector.target.rpartition('.')[2]} with these values"))
        if config.tower.target not in _TOWERS:
            found.append(self._cannot(f"tower {config.tower.target.rpartition('.')[2]}"))
        dense = config.connector.target == config_of.DENSE
        if dense != (self.name == "denseconnector"):
            found.append(self._cannot("dense connector" if dense else "other connector than a dense one"))
        layers = config.tower.arguments.get("layers")
        if not dense and len(layers or ()) != 1:
            found.append(self._cannot(f"tower layers {layers}"))
        if self.name == "bunny" and layers != [-2]:
            found.append(self._cannot(f"tower layer {layers}, -2 is built in"))
        return found

    def _cannot(self, what: str) -> Problem:
        return Problem(f"{self.name} knows no {what}", "", "--to native keeps it")

    def write(self, model: Model, folder: Path, how: How, *, tower_inside: bool = True) -> None:
        """The whole model, or with an adapter that and what is beside it; the tower in a folder of its own.

        Args:
            tower_inside: among the other weights as well, as upstream's checkpoints of a full training have it.
        """
        config = model.config
        assert config is not None
        table, adapter = names(model), model.part("adapter")
        out = ("adapter.",) if tower_inside else ("adapter.", "tower.")
        held = {key: value for key, value in model.tensors.items() if not key.startswith(out)}
        if adapter:
            digests = write_tensors(folder, adapter.items(), name=ADAPTER, hashed=True)
            artifact.write_json(folder / CONFIG, model.json[ADAPTER_CONFIG])
            beside = {key: value for key, value in held.items() if not key.startswith("llm.")}
            beside_it = dict(_outward(table, beside, "base_model.model."))
            digests[folder / BESIDE] = pickles.save(folder / BESIDE, beside_it)
            model.notes.append("the LLM that the adapter belongs to is not in the folder: give it with --base")
        else:
            digests = write_tensors(folder, _outward(table, held), hashed=True)
        kind = config.tower.target.rpartition(".")[2].lower()  # upstream finds the class in the name
        digests |= write_tensors(folder / f"vision_tower_{kind}", model.part("tower").items(), hashed=True)
        artifact.write_json(folder / "config.json", config_of.values(model, self, f"vision_tower_{kind}"))
        places = {place: name for place, name in PLACES.items() if place != LLM_CONFIG}
        places |= {TOWER_CONFIG: f"vision_tower_{kind}/config.json"}
        places |= {PREPROCESSOR: f"vision_tower_{kind}/preprocessor_config.json"}
        write_files(model, folder, places)
        manifest.write(folder, self.name, model, digests)


class Projector:
    """`mm_projector.bin` and its config.json: a connector that was pretrained alone."""

    name = "mm_projector"

    def detect(self, folder: Path) -> bool:
        """Never: the project that it belongs to reads it."""
        return False

    def read(self, folder: Path, how: How) -> Model:
        """As the project does."""
        return LLAVA.read(folder, how)

    def refuse(self, model: Model, how: How) -> list[Problem]:
        """A description of the tower is needed, so the model must be whole."""
        return LLAVA.refuse(model, how) if model.config is None else []

    def write(self, model: Model, folder: Path, how: How) -> None:
        """The connector, with the values that say what it connects."""
        held = {name: value for name, value in model.tensors.items() if name.startswith("connector.")}
        rows = added_rows(model)
        if rows:
            count = len(next(iter(rows.values())))
            model.notes.append(f"the rows of the {count} tokens that the model adds to the LLM go along")
        pickles.save(folder / PROJECTOR, dict(_outward(names(model), held | rows)))
        places = {place: name for place, name in PLACES.items() if place not in (LLM_CONFIG, GENERATION)}
        artifact.write_json(folder / "config.json", config_of.values(model, LLAVA, "vision_tower"))
        write_files(model, folder, places)
        model.notes.append("the connector alone is written: LLM and tower are left out")


def _is_whole(folder: Path) -> bool:
    alone = (folder / PROJECTOR).is_file() or (folder / CONFIG).is_file()
    return not alone or any((folder / name).is_file() for name in _WHOLE)


_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _loose(path: Path) -> dict[str, Lazy]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.name} is missing", str(path.parent), "an intermediate checkpoint of upstream lacks it: it is no use"
        )
    return {name: made(value) for name, value in read_pickle(path).items()}


def _renamed(table: Names, tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    found: dict[str, Lazy] = {}
    for name, value in tensors.items():
        part, _, rest = str(inward(table, _WRAPPED.sub("", name))).partition(".")
        found |= of_part(part, {rest: value})
    return found


def _outward(table: Names, tensors: dict[str, Lazy], prefix: str = "") -> Iterator[tuple[str, Lazy]]:
    return ((f"{prefix}{outward(table, name)}", value) for name, value in tensors.items())


def _tower(values: dict[str, Any], folder: Path, how: How, model: Model) -> dict[str, Lazy]:
    """Tensors and files of the tower that the configuration names."""
    asked = Path(str(values["mm_vision_tower"]))
    beside = folder / asked.name
    place = how.tower or (beside if beside.is_dir() else locate(str(asked)))
    tower = read_json(place / "config.json", "give the vision tower's folder with --tower")
    model.json[TOWER_CONFIG] = tower.get("vision_config", tower)
    model.json[PREPROCESSOR] = read_json(place / "preprocessor_config.json", "fetch the tower again")
    return of_part("tower", tensors_of(place))


LLAVA, KOLLAVA, DENSE, BUNNY = (Upstream(name) for name in ("llava", "kollava", "denseconnector", "bunny"))
PROJECTOR_ONLY = Projector()
