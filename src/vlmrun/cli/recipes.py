"""`vlmrun recipes`: every recipe at a glance, or one with its stages and the data it needs. Written to stdout."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from vlmrun import graph
from vlmrun.cli.options import new_parser
from vlmrun.config import derived
from vlmrun.config.catalog import Catalog, Recipe
from vlmrun.config.compose import compose
from vlmrun.config.schema import DataConfig, RunConfig, TrainStage
from vlmrun.config.validate import validate
from vlmrun.errors import ConfigError, suggest
from vlmrun.names import PARTS
from vlmrun.plan import run as planning

_WIDEST = 100  # columns of the list
_EXAMPLES = """\
vlmrun recipes                  all of them
vlmrun recipes bunny phi        those with both words
vlmrun recipes llava15_7b       one: its stages, values, data
"""


def main(arguments: list[str]) -> int:
    """Lists recipes, or shows one.

    Raises:
        ConfigError: with the nearest name, when there is no such recipe.
    """
    parser = new_parser("recipes", "List recipes by family, or show what one does and needs.", _EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="WORD", help="a recipe's name, or words that narrow the list")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    catalog = Catalog()
    names = catalog.options("recipe")
    if len(options.words) == 1 and options.words[0] in names:
        _show(catalog.recipe(options.words[0]), as_json=options.json)
        return 0
    found = [recipe for recipe in catalog.recipes().values() if _has(recipe, options.words)]
    if not found:
        wanted = " ".join(options.words)
        raise ConfigError(f"no recipe {wanted!r}", "vlmrun recipes", suggest(wanted, names, noun="recipes"))
    _list(found, as_json=options.json)
    return 0


def _has(recipe: Recipe, words: Sequence[str]) -> bool:
    """Whether every word begins a word of what the recipe says of itself."""
    text = json.dumps(list(asdict(recipe).values())).lower()
    return all(re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}", text) for word in words)


def _list(found: list[Recipe], *, as_json: bool) -> None:
    if as_json:
        _write_json([asdict(recipe) for recipe in found])
        return
    columns = min(shutil.get_terminal_size().columns, _WIDEST)
    for family, members in groupby(sorted(found, key=_family), key=_family):
        recipes = list(members)
        sys.stdout.write(f"{family} ({len(recipes)})\n")
        indent = 4 + max(len(recipe.name) for recipe in recipes)
        for recipe in recipes:
            name = f"  {recipe.name}".ljust(indent)
            text = f"{recipe.about.rstrip('.')}; {recipe.gpus}"
            lines = textwrap.wrap(text, columns, initial_indent=name, subsequent_indent=" " * indent)
            sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write("\nvlmrun recipes NAME shows one, vlmrun check +recipe=NAME what it still needs\n")


def _family(recipe: Recipe) -> str:
    """The first word of a recipe's name; recipes without a source are vlmrun's own."""
    return recipe.name.partition("_")[0] if recipe.source else "vlmrun"


def _show(recipe: Recipe, *, as_json: bool) -> None:
    run, unset = resolved(recipe.name)
    planned, _ = graph.plan(run)
    if as_json:
        data = {name: _data(run.data[name]) for name in recipe.data if name in run.data}
        stages = {item.name: item.stage.model_dump(by_alias=True) for item in planned}
        _write_json({**asdict(recipe), "unset": unset, "stages": stages, "data": data})
        return
    write = sys.stdout.write
    write(f"{recipe.name}: {recipe.about}\nsource: {recipe.source}\nhardware: {recipe.gpus}, ")
    write(f"{run.hardware.precision}\n\nmodel {recipe.model}\n")
    for part in PARTS:
        target = getattr(run.model, part)
        write(f"  {part:9}  {target.arguments.get('path') or target.target.rpartition('.')[2]}\n")
    write(f"  template   {run.model.template}, at most {run.model.max_length} tokens\n\nstages\n")
    for item in planned:
        write(f"  {item.name:9}  {_stage_text(item.stage, run)}\n")
    write("\ndata\n")
    for name in recipe.data:
        for line in _data_lines(name, run.data[name]):
            write(f"  {line}\n")
    for key in unset:
        write(f"\nyou give: {key}=...")
    write(f"\n{'' if not unset else chr(10)}run it: vlmrun +recipe={recipe.name}\n")


def resolved(name: str, folders: Sequence[Path] = ()) -> tuple[RunConfig, list[str]]:
    """The composed recipe, what only the user can name filled in, and the names of that."""
    composed = compose([f"+recipe={name}"], folders)
    unset = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if unset:
        composed = compose([f"+recipe={name}", *(f"{key}='...'" for key in unset)], folders)
    run, problems = validate(composed.tree, composed.problems)
    if run is None:
        raise ConfigError([*composed.problems, *problems])
    starts = {key: getattr(stage, "init_from", None) for key, stage in run.stage.items()}
    outside = [key for key, start in starts.items() if start and start not in run.stage and not Path(start).exists()]
    return run, [*unset, *(f"stage.{key}.init_from" for key in outside)]


def _stage_text(stage: Any, run: RunConfig) -> str:
    if not isinstance(stage, TrainStage):
        parents = ", ".join(derived.parent_names(stage))
        weights = f", weights {stage.weights}" if getattr(stage, "weights", None) else ""
        return f"{stage.kind} {parents}{weights}"
    trained = [f"{part} ({how})" for part in PARTS if (how := getattr(stage.tune, part)) != "freeze"]
    rates = {"lr": stage.optim.lr, "connector_lr": stage.optim.connector_lr, "tower_lr": stage.optim.tower_lr}
    shown = ", ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate is not None)
    accumulation = stage.global_batch // (stage.micro_batch * derived.data_ranks(run.hardware))
    batch = f"batch {stage.global_batch} ({stage.micro_batch} x {accumulation} x {derived.data_ranks(run.hardware)})"
    adapters = "" if stage.lora is None else f", LoRA {stage.lora.r}/{stage.lora.alpha:g}"
    length = f"{stage.max_steps:,} updates" if stage.epochs is None else f"{stage.epochs:g} epoch(s)"
    updates = planning.updates(run, stage)
    if stage.epochs is not None and updates is not None:
        length += f", {updates}"
    engine = f"ZeRO-{stage.zero}" if stage.engine == "deepspeed" else stage.engine
    return (
        f"train {' + '.join(trained)} on {', '.join(stage.data)}: {shown}{adapters}, {batch}, {length}, "
        f"{engine}, template {derived.template(stage, run.model)}, aspect {stage.image_aspect}"
    )


def _data(config: DataConfig) -> dict[str, Any]:
    missing = [] if config.prepare is not None else _missing(config)
    return {**config.model_dump(by_alias=True), "missing": missing}


def _missing(config: DataConfig) -> list[str]:
    paths = [config.annotations, *([config.images] if config.images is not None else [])]
    return [path for path in paths if not Path(path).expanduser().exists()]


def _data_lines(name: str, config: DataConfig) -> list[str]:
    if config.prepare is not None:
        return [f"{name}: made by {config.prepare.target}"]
    gone = _missing(config)
    lines = [
        f"{name}: {'there' if not gone else 'missing'}",
        f"  {config.annotations}, images in {config.images or 'the shards'}",
    ]
    if config.about is not None:
        about = "about " if config.about.rounded else ""
        records = f", {about}{config.about.records:,} records" if config.about.records else ""
        lines += [f"  {config.about.url} (license: {config.about.licence}{records})", f"  {config.about.fetch}"]
    return lines


def _write_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
