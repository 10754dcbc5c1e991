"""The parts that `conf/model` offers, by the names that scripts give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmrun.config.compose import conf_dir


@dataclass(frozen=True)
class Model:
    """A published model: the options of its three parts, and its other values."""

    name: str
    parts: dict[str, str]
    values: dict[str, Any]


def plain(name: str) -> str:
    """The last part of a path or hub id, in letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower())


@cache
def _read(file: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(file.read_text("utf-8"))
    return loaded if isinstance(loaded, dict) else {}


@cache
def paths(group: str) -> dict[str, str | None]:
    """Option of `model/GROUP` -> the path it names, None for one that the user names."""
    found = {}
    for file in sorted((conf_dir() / "model" / group).glob("*.yaml")):
        path = _read(file).get("path")
        found[file.stem] = path if isinstance(path, str) and path != "???" else None
    return found


def option(group: str, name: str) -> str | None:
    """The option for a part that a script names, by its path's last part or the option's own name."""
    wanted = plain(name)
    for known, path in paths(group).items():
        if path and plain(path) == wanted:
            return known
    return next((known for known in paths(group) if plain(known) == wanted), None)


@cache
def models() -> list[Model]:
    """All of conf/model."""
    found = []
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        values = dict(_read(file))
        defaults = values.pop("defaults", [])
        parts = {key: value for item in defaults if isinstance(item, dict) for key, value in item.items()}
        found.append(Model(file.stem, parts, values))
    return found


def published(parts: dict[str, str], template: str | None, markers: bool) -> Model | None:
    """The published model of these parts; of several the one with the same template and markers."""
    same = [model for model in models() if {part: model.parts.get(part) for part in parts} == parts]
    exact = [
        model
        for model in same
        if model.values.get("template") == template and bool(model.values.get("image_markers")) == markers
    ]
    return next(iter([*exact, *same]), None)


@cache
def data_names() -> dict[str, str]:
    """File name of a published data set's annotations -> its entry in conf/data."""
    found: dict[str, str] = {}
    for file in sorted((conf_dir() / "data").glob("[a-z]*.yaml")):
        annotations = str(_read(file).get("annotations", "???"))
        made_here = "VLMRUN_ASSETS" in annotations  # demonstrations, with names that any data set may have
        if annotations != "???" and not made_here and _read(file).get("about"):
            found.setdefault(annotations.rpartition("/")[2], file.stem)
    return found


def preset(key: str) -> object:
    """What conf/ has for a key of a training stage or of the run, before a script says anything."""
    part, _, rest = key.partition(".")
    values: object = _read(conf_dir() / ("stage/_train.yaml" if part == "stage" else "config.yaml"))
    for name in (rest or part).split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values
