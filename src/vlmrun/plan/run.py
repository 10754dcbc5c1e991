"""From a composed run to what `plan` computes with: sizes of the parts, from their config.json or a published one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from vlmrun import graph
from vlmrun.arch import config_files, linears
from vlmrun.arch.sizes import Connector, Llm, Shapes, Tower
from vlmrun.checks import engines, vision
from vlmrun.checks import values as config_checks
from vlmrun.config import derived
from vlmrun.config.schema import ModelConfig, RunConfig, Slices, Target, Tiles, TrainStage
from vlmrun.errors import CheckpointError, Problem, VlmrunError
from vlmrun.plan import advice, lengths, stage, time
from vlmrun.plan.lengths import Known
from vlmrun.plan.stage import OtherPlan, Read, TrainPlan
from vlmrun.plan.time import Rates

CAPTION_TEMPLATES = ("plain",)  # a picture and what it shows, nothing asked


@dataclass(frozen=True)
class Config:
    """A part's config.json, and whether it is the one published for that hub id because the folder is not here."""

    values: dict[str, Any]
    published: bool


def config_of(part: Target, kind: str) -> Config:
    """The config of the `llm` or the `tower`.

    Raises:
        CheckpointError: when neither the folder is here nor the hub id known.
    """
    try:
        return Config(config_files.config_of(part), False)
    except CheckpointError:
        known = published()[kind].get(str(part.arguments.get("path")))
        if known is None:
            raise
        return Config(known, True)


@cache
def published() -> dict[str, dict[str, dict[str, Any]]]:
    """plan/published.yaml."""
    text = files("vlmrun.plan").joinpath("published.yaml").read_text("utf-8")
    found: Any = OmegaConf.to_container(OmegaConf.create(text))
    return dict(found)


def shapes(model: ModelConfig, *, exact: bool = False) -> tuple[Shapes | None, list[str]]:
    """Sizes of the parts, and the hub ids whose published sizes stand in for a folder.

    Args:
        exact: what `families` does not know is built without weights and asked, which loads torch; else the sizes are
            None.

    Raises:
        CheckpointError: when a config.json is missing.
    """
    llm, tower = config_of(model.llm, "llm"), config_of(model.tower, "tower")
    both = ((model.llm, llm), (model.tower, tower))
    stood_in = [str(part.arguments["path"]) for part, config in both if config.published]
    found = _computed(model, llm.values, tower.values)
    if found is None and exact:
        n_added = len([*(model.image_markers or []), *model.new_tokens])
        # A string, so that the front half does not depend on what loads torch.
        found = importlib.import_module("vlmrun.plan.meta").shapes_of(model, llm.values, tower.values, n_added)
    return found, stood_in


def _computed(model: ModelConfig, llm_config: dict[str, Any], tower_config: dict[str, Any]) -> Shapes | None:
    llm = linears.llm(llm_config, len([*(model.image_markers or []), *model.new_tokens]))
    section = tower_config.get("vision_config", tower_config)
    target, _ = derived.connector_weights(model.connector)
    wanted = linears.wanted_layers(target.target, target.arguments, section.get("num_hidden_layers", 0))
    tower = linears.tower(tower_config, model.tower.arguments, wanted)
    if llm is None or tower is None:
        return None
    between = _connector(model, target, llm, tower)
    return Shapes(llm, tower, between) if between is not None else None


def _connector(model: ModelConfig, target: Target, llm: Llm, tower: Tower) -> Connector | None:
    count = vision.TOKENS.get(target.target)
    if count is None:
        return None
    try:
        rows = (tower.patches, count(tower.patches, target.arguments))
    except (ValueError, TypeError, AttributeError):
        return None
    scales = len(model.tower.arguments.get("scales") or [1])
    widths = (tower.hidden * tower.kept * scales, tower.hidden * scales, llm.hidden)
    made = linears.connector(target.target, target.arguments, widths, rows)
    newline = llm.hidden * (isinstance(model.tiles, Tiles) and model.tiles.merge == "spatial_unpad")
    return Connector(made.linears, made.tokens, made.saved, made.extra + newline) if made else None


@dataclass(frozen=True)
class Options:
    """What `vlmrun plan` is told besides overrides."""

    rates: Rates
    records: Mapping[str, int] = field(default_factory=dict)
    counted: bool = True


@dataclass(frozen=True)
class Plan:
    """All stages of a run that are to be run, in order.

    Attributes:
        stood_in: hub ids whose published sizes stand in for folders that are not here.
    """

    run: RunConfig
    stages: tuple[TrainPlan | OtherPlan, ...]
    stood_in: tuple[str, ...]


def plan(run: RunConfig, options: Options) -> Plan:
    """The plan of a composed run.

    Raises:
        VlmrunError: when a config.json is missing, or nothing tells how many records there are.
    """
    planned, problems = graph.plan(run)
    graph.require([*problems, *_problems(run)])
    found, stood_in = shapes(run.model, exact=True)
    assert found is not None
    chosen = [item for item in graph.selected(planned, run.only) if item.stage.kind != "prepare"]
    return Plan(run, tuple(_stage(run, item.name, found, options) for item in chosen), tuple(stood_in))


def _problems(run: RunConfig) -> list[Problem]:
    """Rules between values; whether this machine has what the run needs is no matter here."""
    return [*config_checks.check(run), *engines.check(run, here=False)]


def warnings(run: RunConfig) -> list[str]:
    """Stages that need more memory than a GPU has; silent about parts that only a model tells the sizes of."""
    try:
        found, _ = shapes(run.model)
        room = advice.capacity(run.hardware)
    except VlmrunError:
        return []  # a problem of its own
    if found is None or room is None or _problems(run):
        return []
    said = []
    for name, one in run.stage.items():
        if isinstance(one, TrainStage) and (not run.only or name in run.only):
            options = Options(Rates(time.MFU, time.PRICE), counted=False)
            samples = _read(run, one, found, options).samples
            needed = stage.needed(found, one, run.hardware, samples).total
            if needed > room:
                said.append(
                    f"stage.{name}: about {needed / 2**30:.0f} GiB a GPU are planned, {run.hardware.gpu} has "
                    f"{room / 2**30:.0f}; `vlmrun plan` with the same words says what would fit"
                )
    return said


def _stage(run: RunConfig, name: str, found: Shapes, options: Options) -> TrainPlan | OtherPlan:
    one = run.stage[name]
    if isinstance(one, TrainStage):
        return stage.train(name, found, one, run.hardware, _read(run, one, found, options), options.rates)
    return stage.other(name, found, one, run.hardware, run.model.max_length)


def _read(run: RunConfig, one: TrainStage, found: Shapes, options: Options) -> Read:
    captions = derived.template(one, run.model) in CAPTION_TEMPLATES
    known = Known(captions, run.model.max_length, options.records, options.counted)
    sources = {name: lengths.source(name, run.data[name], known) for name in derived.sources(one)}
    per_picture, tiles = _of_a_picture(run.model, one, found)

    def together(names: list[str], weights: list[float] | None) -> lengths.Samples:
        chosen = [sources[name] for name in names]
        return lengths.together(chosen, weights, per_picture=per_picture, tiles=tiles, max_length=run.model.max_length)

    held_out = together(one.eval.data, None) if one.eval is not None else None
    return Read(tuple(sources.values()), together(one.data, one.data_weights), held_out)


def _of_a_picture(model: ModelConfig, one: TrainStage, found: Shapes) -> tuple[int, int]:
    """Image tokens, and pieces that the tower takes, of a picture that is cut as often as allowed."""
    per_piece, cut = found.connector.tokens, model.tiles
    if one.image_aspect == "slices" and isinstance(cut, Slices):
        pieces = 1 + cut.max_slices * (cut.max_slices > 1)
        return per_piece * pieces, pieces
    if one.image_aspect == "anyres" and isinstance(cut, Tiles):
        edge, grids = found.tower.edge, cut.grids
        most = max(vision.most_tokens(cut, grid, per_piece, edge) for grid in grids)
        return most, 1 + max((grid[0] // edge) * (grid[1] // edge) for grid in grids)
    return per_piece, 1
