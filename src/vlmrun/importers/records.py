"""The data entries of a recipe: which of ours a script's files are, and a name for those that are the user's own."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from vlmrun.importers import options
from vlmrun.importers.meaning.draft import Draft, Setting
from vlmrun.importers.recipe import Recipe
from vlmrun.importers.shell import marks


def add(draft: Draft, recipe: Recipe, settings: dict[str, Setting]) -> None:
    """Adds a training command's records to its recipe, and their names to the stage's settings."""
    names = {role: _added(draft, recipe, role, source) for role, source in draft.data.items()}
    if "train" in names:
        settings["data"] = Setting("data", [names["train"]], draft.data["train"]["source"])
    elif "data" not in settings:
        recipe.data.setdefault("records", ("llava", {}))
        settings["data"] = Setting("data", ["records"], "no data is named: give data.records.annotations and images")
    held_out = settings.get("eval")
    if held_out is not None and held_out.value and "eval" in names:
        settings["eval"] = Setting("eval", {**held_out.value, "data": [names["eval"]]}, held_out.source)


def _added(draft: Draft, recipe: Recipe, role: str, source: dict[str, Any]) -> str:
    annotations, images = source["annotations"], source.get("images")
    known, option = entry(annotations or role, draft.family, role)
    name = distinct(f"{known}_{source['split']}" if "split" in source else known, annotations, recipe)
    values = {"annotations": Setting("annotations", annotations, source["source"])} if annotations else {}
    if "format" in source:
        note = "an external loader is megatron-energon's"
        values |= {key: Setting(key, source[key], note) for key in ("format", "split")}
        values["images"] = Setting("images", None, "images are in the shards")
    elif images or draft.family == "minicpm":
        note = source["images_source"] if images else "MiniCPM-V's records hold absolute paths"
        values["images"] = Setting("images", images or "/", note)
    recipe.data.setdefault(name, (option, values))
    return name


def slug(path: str) -> str:
    name = (
        re.sub(r"[^A-Za-z0-9]+", "_", posixpath.basename(marks.shown(path)).rpartition(".")[0] or path)
        .strip("_")
        .lower()
    )
    return (name or "records")[:60]


def entry(path: str, family: str, role: str) -> tuple[str, str]:
    """The name of a data entry, and the option of conf/data it starts from."""
    if family == "minicpm":
        return ("minicpm", "minicpm") if role == "train" else ("minicpm_eval", "minicpm_eval")
    known = options.data_names().get(posixpath.basename(path))
    return (known, known) if known else (slug(path), "llava")


def distinct(entry: str, annotations: str | None, recipe: Recipe) -> str:
    """The entry's name, numbered where another file has it already."""
    number, name = 1, entry
    while name in recipe.data and getattr(recipe.data[name][1].get("annotations"), "value", None) != annotations:
        number += 1
        name = f"{entry}_{number}"
    return name
