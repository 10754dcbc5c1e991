"""`vlmrun recipes`: every recipe at a glance, or one with its stages and the data it needs. Written to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlmrun import graph
from vlmrun.config import derived
from vlmrun.config.compose import compose, conf_dir, search_path
from vlmrun.config.schema import DataConfig, RunConfig, TrainStage
from vlmrun.config.validate import validate
from vlmrun.errors import ConfigError, suggest
from vlmrun.names import PARTS
from vlmrun.plan import run as planning
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_COLUMNS = (
    *(Column("recipe"), Column("model"), Column("stages"), Column("gpus")),
    *(Column("data", below=False), Column("source", below=False)),
)


@dataclass(frozen=True)
class Recipe:
    """What the head and the choices of a recipe file tell, without composing it."""

    name: str
    about: str
    model: str
    pipeline: str
    data: tuple[str, ...]
    stages: tuple[str, ...]
    gpus: str
    source: str


def main(arguments: list[str]) -> int:
    """Lists recipes, or shows one.

    Raises:
        ConfigError: with the nearest name, when there is no such recipe.
    """
    parser = argparse.ArgumentParser("vlmrun recipes", description="List recipes, or show what one does and needs.")
    parser.add_argument("name", nargs="?", help="a recipe's name")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    name, found = options.name, recipes()
    if name is None:
        _list(list(found.values()), as_json=options.json)
    elif name not in found:
        raise ConfigError(f"no recipe {name!r}", "vlmrun recipes", suggest(name, found, noun="recipes"))
    else:
        _show(found[name], as_json=options.json)
    return 0


def recipes() -> dict[str, Recipe]:
    """All recipes by name: the shipped ones and those of plugins."""
    files = [file for folder in _folders() for file in sorted((folder / "recipe").glob("*.yaml"))]
    return {file.stem: _read(file) for file in files}


def _folders() -> list[Path]:
    return [conf_dir(), *search_path()]


def _read(file: Path) -> Recipe:
    text = file.read_text("utf-8")
    head = [line[1:].strip() for line in text.partition("defaults:")[0].splitlines() if line.startswith("#")][1:]
    content = _plain(text)
    chosen = _chosen(content)
    added = [key.removeprefix("/stage@stage.") for key in chosen if key.startswith("/stage@stage.")]
    return Recipe(
        name=file.stem,
        about=head[0].partition("   vlmrun")[0] if head else "",
        model=str(chosen.get("model", "")),
        pipeline=str(chosen.get("/pipeline", "")),
        data=tuple(chosen.get("data") or ()),
        stages=(*(chosen.get("stage") or ()), *added),
        gpus=_gpus(str(chosen.get("hardware", "cpu")), content.get("hardware") or {}),
        source=next((line.removeprefix("Source: ") for line in head if line.startswith("Source: ")), ""),
    )


def _plain(text: str) -> dict[str, Any]:
    """A YAML file as it stands: nothing is composed or resolved."""
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _chosen(content: dict[str, Any]) -> dict[str, Any]:
    """Group -> option of a defaults list. What a recipe chooses goes before what its pipeline chooses."""
    chosen: dict[str, Any] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            chosen |= {key.removeprefix("override /"): value for key, value in entry.items()}
    pipeline = chosen.get("/pipeline")
    return chosen if pipeline is None else _chosen(_option("pipeline", pipeline)) | chosen


def _option(group: str, name: str) -> dict[str, Any]:
    """An option's text laid over the files it starts from (`- NAME@_here_`); empty when there is no such file."""
    file = next((file for folder in _folders() if (file := folder / group / f"{name}.yaml").is_file()), None)
    own = _plain(file.read_text("utf-8")) if file else {}
    bases = [entry for entry in own.get("defaults", []) if isinstance(entry, str) and entry.endswith("@_here_")]
    values: dict[str, Any] = {}
    for base in bases:
        values |= _option(group, base.removesuffix("@_here_"))
    return values | own


def _gpus(option: str, changes: dict[str, Any]) -> str:
    values = _option("hardware", option) | changes
    n_ranks = int(values.get("nodes", 1)) * int(values.get("ranks_per_node", 1))
    return "cpu" if values.get("gpu") == "cpu" else f"{n_ranks} x {values.get('gpu', option)}"


def _list(found: list[Recipe], *, as_json: bool) -> None:
    if as_json:
        _write_json([asdict(recipe) for recipe in found])
        return
    lines = [
        [recipe.name, recipe.model, " ".join(recipe.stages), recipe.gpus, " ".join(recipe.data), recipe.source]
        for recipe in found
    ]
    tables.write(Grid("", _COLUMNS, lines), sys.stdout)
    sys.stdout.write("\nvlmrun recipes NAME shows one, vlmrun check +recipe=NAME says what it still needs\n")


def _show(recipe: Recipe, *, as_json: bool) -> None:
    run, unset = _resolved(recipe.name)
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


def _resolved(name: str) -> tuple[RunConfig, list[str]]:
    """The composed recipe, what only the user can name filled in, and the names of that."""
    composed = compose([f"+recipe={name}"])
    unset = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if unset:
        composed = compose([f"+recipe={name}", *(f"{key}='...'" for key in unset)])
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
    trained = [f"{part} ({how})" for part, how in stage.tune.model_dump().items() if how != "freeze"]
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
        records = f", {config.about.records:,} records" if config.about.records else ""
        lines += [f"  {config.about.url} (license: {config.about.licence}{records})", f"  {config.about.fetch}"]
    return lines


def _write_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
