"""A planned recipe as YAML files, with the script's line behind every value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vlmrun import artifact
from vlmrun.errors import ConfigError
from vlmrun.importers import options
from vlmrun.importers.recipe import Recipe
from vlmrun.importers.shell import marks

_NEUTRAL: dict[str, Any] = {"max_length": 2048, "image_markers": None, "new_tokens": [], "tiles": None}


def files(recipe: Recipe, script: str, hardware: str) -> dict[str, str]:
    """Path below the folder of configurations -> content: the recipe, and its model where none of ours fits."""
    name, model = recipe.name, _model(recipe)
    lines = [
        "# @package _global_",
        f"# Imported from {_comment(script)}.   vlmrun --config-dir FOLDER +recipe={name}",
        "# Behind each value: the line of the script it comes from. docs/guides/import.md",
        "defaults:",
    ]
    lines += [f"  - /stage@stage.{stage.name}: {stage.preset}" for stage in recipe.stages]
    lines += [f"  - /data@data.{entry}: {option}" for entry, (option, _) in recipe.data.items()]
    lines += [
        f"  - override /model: {model or name}",
        f"  - override /hardware: {hardware}",
        "  - _self_",
        f"name: {name}",
    ]
    tree: dict[str, Any] = {}
    for item in recipe.settings():
        _put(tree, item.key.split("."), item)
    lines += _lines(tree, 0)
    out = {f"recipe/{name}.yaml": "\n".join(lines) + "\n"}
    if model is None:
        out[f"model/{name}.yaml"] = _model_file(recipe, script)
    for place, values in recipe.own_parts.items():
        out[f"model/{place}.yaml"] = _part_file(place, values, script)
    return out


def _part_file(place: str, values: dict[str, Any], script: str) -> str:
    part = place.partition("/")[0]
    lines = [f"# Of {_comment(script)}: no {part} of ours fits. Name its class: docs/guides/own-parts.md"]
    return "\n".join([*lines, *(f"{key}: {_value(value)}" for key, value in values.items())]) + "\n"


def _model(recipe: Recipe) -> str | None:
    if "model" in recipe.model:
        return str(recipe.model["model"].value)
    parts = {name: str(item.value) for name, item in recipe.model.items()}
    values = {key: item.value for key, item in recipe.shared.items()}
    found = options.published(parts, values.get("model.template"), bool(values.get("model.image_markers")))
    return found.name if found is not None and len(parts) == 3 else None


def _model_file(recipe: Recipe, script: str) -> str:
    defaults = {"llm": "hf", "tower": "clip", "connector": "linear"} | {n: i.value for n, i in recipe.model.items()}
    lines = [f"# The model of {_comment(script)}.   vlmrun import", "defaults:"]
    for name, option in defaults.items():
        source = recipe.model[name].source if name in recipe.model else "not named in the script: choose one"
        lines.append(f"  - {name}: {option}   # {_comment(source)}")
    lines += ["  - _self_", "template: vicuna_v1"]
    lines += [f"{key}: {_value(value)}" for key, value in _NEUTRAL.items()]
    if any(item.key.startswith("model.tiles.grids") for item in recipe.shared.values()):
        lines[-1] = "tiles: {grids: [[336, 672]], merge: flat}"
    return "\n".join(lines) + "\n"


def _put(tree: dict[str, Any], keys: list[str], item: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = item


def _lines(tree: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for key, item in tree.items():
        if isinstance(item, dict):
            lines += [f"{'  ' * depth}{key}:", *_lines(item, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {_value(item.value)}   # {_comment(item.source)}")
    return lines


def _value(value: Any) -> str:
    """A value in one line of YAML; `${` of a script is text here, never an interpolation."""
    if isinstance(value, float):
        return _float(value)
    text: str = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()


def _float(value: float) -> str:
    text = f"{value:g}"
    if float(text) != value:
        text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    mantissa = mantissa if "." in mantissa or not mark else f"{mantissa}.0"
    return f"{mantissa}{mark}{exponent}" if mark else (text if "." in text else f"{text}.0")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _comment(text: str) -> str:
    clean = "".join(char if char.isprintable() else " " for char in marks.shown(text))
    return clean if len(clean) <= 160 else f"{clean[:157]}..."


def save(folder: Path, contents: dict[str, str], *, overwrite: bool) -> list[Path]:
    """Writes the files, each to a temporary name that is renamed.

    Raises:
        ConfigError: for a file that is there already.
    """
    there = [folder / name for name in contents if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already", "--out", "choose another --name, or --overwrite")
    written = []
    for name, content in contents.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with artifact.writing(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(target)
    return written
